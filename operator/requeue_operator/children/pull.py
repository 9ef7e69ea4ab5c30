"""How nodes get the image: policy and Secrets, as they were by default when the fleet was made.

They stand in the pods' template, so another default would restart every fleet. They are therefore noted at the
StatefulSet and go on as noted, like its image. The note, not the template: `podTemplate` may have gone over that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from requeue_operator.children.naming import Manifest

PULL: Final = "requeue.dev/image-pull"
"""On the StatefulSet: the note, in JSON."""


@dataclass(frozen=True)
class Pull:
    """Policy (None: what Kubernetes does by itself) and the names of the Secrets of registries."""

    policy: str | None = None
    secrets: tuple[str, ...] = ()

    @property
    def note(self) -> dict[str, str]:
        """The annotation; none where nothing was said."""
        said = {
            **({} if self.policy is None else {"policy": self.policy}),
            **({"secrets": list(self.secrets)} if self.secrets else {}),
        }
        return {PULL: json.dumps(said)} if said else {}

    @property
    def of_container(self) -> Manifest:
        """What goes into the container."""
        return {} if self.policy is None else {"imagePullPolicy": self.policy}

    @property
    def of_pod(self) -> Manifest:
        """What goes into the spec of the pod."""
        return {"imagePullSecrets": [{"name": name} for name in self.secrets]} if self.secrets else {}


PLAIN: Final = Pull()
"""Nothing said."""


def pull_of(live_set: Manifest) -> Pull:
    """As noted at a live StatefulSet; a note that somebody spoilt says nothing."""
    try:
        said = json.loads((live_set["metadata"].get("annotations") or {}).get(PULL, "{}"))
        return Pull(said.get("policy"), tuple(said.get("secrets", ())))
    except (ValueError, AttributeError, TypeError):
        return PLAIN
