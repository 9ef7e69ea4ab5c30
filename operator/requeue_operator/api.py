"""`RequeueQueue` (requeue.dev/v1alpha1): what a user may ask for and what the operator answers, as models.

`crd.py` writes the custom resource definition from them: names, types, limits, descriptions, and the rules of `cel`.
Queue policy is `requeue_protocol.policy`, the very models that a worker reads. `validation` judges what the API
server cannot. A field's `default` is only for the operator, unless it is `in_schema`: then the API server writes
it into each object (defaults inside lists would make GitOps tools see a drift for ever).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from requeue_protocol.durations import NS_PER_S
from requeue_protocol.policy import Duration, NamedQueuePolicy, QueuePolicy
from requeue_protocol.subjects import INTAKE_DEFAULT, QUEUE_GROUP

from requeue_operator import cel

GROUP: Final = "requeue.dev"
VERSION: Final = "v1alpha1"
KIND: Final = "RequeueQueue"
PLURAL: Final = "requeuequeues"
MAX_QUEUES: Final = 256
MAX_SHARDS: Final = 64
LISTED_QUEUES: Final = 20

IN_SCHEMA: Final = "x-requeue-default"


def _schema(*rules: cel.Rule, in_schema: bool = False, **keys: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {IN_SCHEMA: True} if in_schema else {}
    if rules:
        extra["x-kubernetes-validations"] = cel.rules(*rules)
    return {**extra, **keys}


def _map_by(key: str) -> dict[str, Any]:
    """A list whose items are known by `key`: each once, and merged one by one."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=lambda field: to_camel(field.removesuffix("_ns")),
    )


_NameOfSecret = Annotated[str, Field(max_length=253, json_schema_extra=_schema(cel.SECRET_NAME))]
_KeyOfSecret = Annotated[str, Field(max_length=253, json_schema_extra=_schema(cel.SECRET_KEY))]
_Duration = Annotated[
    Duration, Field(json_schema_extra=_schema(cel.DURATION_SHAPE, type="string", maxLength=32))
]
_Server = Annotated[str, Field(max_length=256, json_schema_extra=_schema(cel.SERVER))]


class SecretKey(_Model):
    """One key of a Secret in the same namespace. It is mounted as a file, and read again when it changes."""

    secret_name: _NameOfSecret = Field(
        description="Name of the Secret, in the namespace of the RequeueQueue."
    )
    key: _KeyOfSecret = Field(description="Key in the Secret.")


class UserPassword(_Model):
    """User and password out of one Secret, such as one of type kubernetes.io/basic-auth."""

    secret_name: _NameOfSecret = Field(
        description="Name of the Secret, in the namespace of the RequeueQueue."
    )
    user_key: _KeyOfSecret = Field(
        default="username", description="Key of the user's name. Default: username."
    )
    password_key: _KeyOfSecret = Field(
        default="password", description="Key of the password. Default: password."
    )


class Credentials(_Model):
    """The way to log in to NATS: one of these."""

    creds: SecretKey | None = Field(default=None, description="Credentials file with user JWT and nkey seed.")
    nkey: SecretKey | None = Field(default=None, description="Seed of a user nkey (SU...).")
    token: SecretKey | None = Field(default=None, description="Token.")
    user_password: UserPassword | None = Field(default=None, description="User and password.")


class ClientCertificate(_Model):
    """A certificate and its key out of one Secret, such as one of type kubernetes.io/tls."""

    secret_name: _NameOfSecret = Field(
        description="Name of the Secret, in the namespace of the RequeueQueue."
    )
    cert_key: _KeyOfSecret = Field(
        default="tls.crt", description="Key of the certificate (PEM). Default: tls.crt."
    )
    key_key: _KeyOfSecret = Field(default="tls.key", description="Key of its key (PEM). Default: tls.key.")


class Tls(_Model):
    """TLS towards NATS; needed for a private CA, a client certificate or an odd host name alone."""

    ca: SecretKey | None = Field(default=None, description="CAs to trust instead of the system's (PEM).")
    client_certificate: ClientCertificate | None = Field(
        default=None, description="Client certificate for mTLS."
    )
    hostname: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="Name that the server's certificate must have. Default: the one in the URL."
    )
    handshake_first: bool = Field(
        default=False, description="TLS before the server's INFO, where the server is set so. Default: false."
    )


class Nats(_Model):
    """The NATS servers, and how the workers log in there."""

    servers: tuple[_Server, ...] = Field(
        min_length=1,
        max_length=32,
        description="URLs of servers of one NATS cluster, like nats://nats.messaging:4222.",
        json_schema_extra=_schema(cel.ONE_KIND_OF_SERVER),
    )
    credentials: Credentials | None = Field(
        default=None,
        description="How to log in, by Secrets. Left out: no login.",
        json_schema_extra=_schema(cel.ONE_LOGIN),
    )
    tls: Tls | None = Field(default=None, description="TLS towards NATS, beyond what a tls:// URL asks for.")


class Storage(_Model):
    """The volumes that messages are kept on."""

    size: str = Field(
        max_length=32,
        description="Size of each volume, like 10Gi. It may grow, and never shrink.",
        json_schema_extra=_schema(cel.STORAGE_SIZE, cel.STORAGE_NO_SHRINK),
    )
    storage_class_name: Annotated[str, Field(max_length=253)] | None = Field(
        default=None,
        description="StorageClass of the volumes; cannot change. Default: the cluster's default class.",
    )
    mode: Literal["PerPod", "Shared"] = Field(
        default="PerPod",
        description="PerPod: a volume for each pod. Shared: one volume for all of them (ReadWriteMany). Cannot change.",
        json_schema_extra=_schema(cel.STORAGE_MODE_FIXED, in_schema=True),
    )
    on_scale_down: Literal["Drain", "Retain"] = Field(
        default="Drain",
        description="What becomes of the volume of a pod that is scaled away. Drain: its messages are handed to "
        "another worker, then it is deleted. Retain: it stays, with its messages.",
        json_schema_extra=_schema(in_schema=True),
    )
    on_delete: Literal["Retain", "Drain", "Delete"] = Field(
        default="Retain",
        description="What becomes of the volumes when the RequeueQueue is deleted. Retain: they stay. Drain: the "
        "deletion waits until no message is left. Delete: they go, with the messages on them.",
        json_schema_extra=_schema(in_schema=True),
    )
    drain_to: Annotated[str, Field(max_length=40)] | None = Field(
        default=None,
        description="With onDelete Drain: the RequeueQueue that takes over what is still pending.",
    )
    drain_timeout_ns: _Duration | None = Field(
        default=None, description="With onDelete Drain: the deletion waits no longer than this."
    )


class PodMetadata(_Model):
    """Labels and annotations beside those of the operator."""

    labels: dict[str, str] = Field(default_factory=dict, description="Further labels of the pods.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Further annotations of the pods.")


class PodTemplate(_Model):
    """What the pods get beyond what the operator gives them."""

    metadata: PodMetadata = Field(
        default_factory=PodMetadata, description="Labels and annotations of the pods."
    )
    spec: dict[str, Any] = Field(
        default_factory=dict,
        description="Merged into the PodSpec; containers, volumes and variables by name (the worker's container is "
        "called worker). What would endanger the messages or the pod's security is refused: see Stalled.",
        json_schema_extra=_schema(**{"x-kubernetes-preserve-unknown-fields": True}),
    )


class Switch(_Model):
    """Something that is there or not."""

    enabled: bool = Field(default=False, description="Whether to make one. Default: false.")


class Web(_Model):
    """The workers' web view."""

    changes: bool = Field(
        default=False,
        description="Whether it may redrive dead letters, pause and resume queues. Default: false.",
    )


class RequeueQueueSpec(_Model):
    """What is asked for."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Number of workers. Leave it out where an autoscaler sets it. 0 keeps all data and sends nothing.",
        json_schema_extra=_schema(in_schema=True, format="int32"),
    )
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None,
        description="Image of the workers. Default: the one that the operator was installed with.",
    )
    nats: Nats = Field(description="The NATS servers, and how the workers log in there.")
    subject: str = Field(
        default=INTAKE_DEFAULT,
        max_length=256,
        description=f"Subject that messages are taken from. Default: {INTAKE_DEFAULT}.",
        json_schema_extra=_schema(cel.SUBJECT_PATTERN, cel.INTAKE),
    )
    queue_group: str = Field(
        default=QUEUE_GROUP,
        max_length=128,
        description=f"NATS queue group of the intake: each message goes to one worker of it. Default: {QUEUE_GROUP}.",
        json_schema_extra=_schema(cel.QUEUE_GROUP),
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=MAX_SHARDS,
        description="Worker processes in each pod, for nodes with many cores.",
        json_schema_extra=_schema(in_schema=True, format="int32"),
    )
    storage: Storage = Field(
        description="The volumes that messages are kept on.",
        json_schema_extra=_schema(cel.STORAGE_CLASS_FIXED, cel.DRAIN_TO),
    )
    defaults: QueuePolicy = Field(
        default_factory=lambda: QueuePolicy.model_validate({}),
        description="Policy of every queue. Taken over by running workers.",
    )
    queues: tuple[NamedQueuePolicy, ...] = Field(
        default=(),
        max_length=MAX_QUEUES,
        description="Policies of queues by name; what one leaves out comes from defaults. Taken over by running workers.",
        json_schema_extra=_map_by("name"),
    )
    shutdown_grace_ns: _Duration = Field(
        default=15 * NS_PER_S,
        description="Longest wait of a stopping worker for replies. Its pod gets 15 s more. Default: 15s.",
    )
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate, description="What the pods get beyond what the operator gives them."
    )
    network_policy: Switch = Field(
        default_factory=Switch,
        description="A NetworkPolicy: in to the HTTP port, out to DNS and the NATS servers' ports, and nothing else.",
    )
    pod_monitor: Switch = Field(
        default_factory=Switch,
        description="A PodMonitor for the Prometheus operator, where its CRD is installed.",
    )
    web: Web | None = Field(
        default=None,
        description="A web view on 127.0.0.1:8081 of each pod, for kubectl port-forward. It has no login. Left out: none.",
    )
    paused: bool = Field(
        default=False,
        description="The operator changes nothing while this is true. Workers go on. Default: false.",
    )


class Condition(_Model):
    """One aspect of the state, as kstatus and `kubectl wait` read it."""

    type: str = Field(
        description="Ready, Reconciling, Stalled, Drained, StorageReady or NatsConnected.", max_length=316
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(description="Why, in one word.", max_length=1024)
    message: str = Field(default="", description="Why, in a sentence that says what to do.", max_length=32768)
    observed_generation: int = Field(default=0, description="Generation of the spec that it is about.")
    last_transition_time: str = Field(
        description="When the status last changed.", json_schema_extra=_schema(format="date-time")
    )


class QueueStatus(_Model):
    """One queue in numbers, all workers together."""

    name: str = Field(description="Name of the queue.")
    pending: int = Field(description="Messages that wait.")
    dead: int = Field(description="Dead letters that are kept.")


class Backlog(_Model):
    """What the workers have on their volumes, all together, as they last told."""

    workers: int = Field(default=0, description="Workers whose numbers are in it.")
    pending: int = Field(default=0, description="Messages that wait.")
    dead: int = Field(default=0, description="Dead letters that are kept.")
    next_due: str | None = Field(
        default=None,
        description="When the next message is due.",
        json_schema_extra=_schema(format="date-time"),
    )
    queues: tuple[QueueStatus, ...] = Field(
        default=(),
        max_length=LISTED_QUEUES,
        description=f"The {LISTED_QUEUES} largest queues.",
        json_schema_extra=_map_by("name"),
    )


class Effective(_Model):
    """What was chosen where the spec says nothing."""

    image: str | None = Field(default=None, description="Image of the workers.")


class RequeueQueueStatus(_Model):
    """What is so."""

    observed_generation: int = Field(
        default=-1, description="Generation of the spec that all of this is about."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="State, as kstatus and `kubectl wait` read it.",
        json_schema_extra=_map_by("type"),
    )
    replicas: int | None = Field(default=None, description="Pods that there are.")
    ready_replicas: int | None = Field(default=None, description="Pods that take messages in.")
    selector: str | None = Field(default=None, description="Label selector of the pods, for autoscalers.")
    backlog: Backlog | None = Field(
        default=None, description="What the workers have on their volumes, all together, as they last told."
    )
    retained_claims: tuple[str, ...] = Field(
        default=(), description="PersistentVolumeClaims with data that no pod uses.", max_length=100
    )
    effective: Effective | None = Field(
        default=None, description="What was chosen where the spec says nothing."
    )
