from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from requeue_protocol.durations import NS_PER_S
from requeue_protocol.envelope import Backoff
from requeue_worker.settings import ConfigError, NatsSettings, Settings, load, load_settings, policy_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.yaml"


def mistakes(file: Path | None, flags: dict[str, object] | None = None, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(file, {"data_dir": "data"} if flags is None else flags, environ=environ)
    assert str(caught.value).split("\n") == list(caught.value.mistakes)
    return tuple(text.replace(f"{file}", "worker.yaml") for text in caught.value.mistakes)


def mistakes_in(file: Path, content: str) -> tuple[str, ...]:
    file.write_text(content)
    return mistakes(file)


# -- where a value comes from ---------------------------------------------------------------------------


def test_a_flag_goes_over_the_environment_over_the_file_over_the_default(file: Path) -> None:
    file.write_text("{fleet: file, subject: file.>, queue_group: file, data_dir: file}")
    environ = {"REQUEUE_FLEET": "env", "REQUEUE_SUBJECT": "env.>"}
    settings = load_settings(file, {"fleet": "flag", "http": None, "nats.servers": ()}, environ=environ)
    assert (settings.fleet, settings.subject, settings.queue_group) == ("flag", "env.>", "file")
    assert (settings.data_dir, settings.log_level, settings.http) == (Path("file"), "info", None)
    assert settings.nats.servers == ("nats://127.0.0.1:4222",)


def test_sections_are_merged_key_by_key(file: Path) -> None:
    file.write_text("nats: {name: mine, tls: {hostname: h}}\ndefaults: {retries: 5, weight: 7}\n")
    environ = {"REQUEUE_NATS_TLS_HANDSHAKE_FIRST": "true", "REQUEUE_DEFAULTS_RETRIES": "6"}
    settings = load_settings(file, {"data_dir": "d", "nats": {"reconnect_wait": "1s"}}, environ=environ)
    assert (settings.nats.name, settings.nats.reconnect_wait_ns) == ("mine", NS_PER_S)
    assert (settings.nats.tls.hostname, settings.nats.tls.handshake_first) == ("h", True)
    assert (settings.defaults.retries, settings.defaults.weight) == (6, 7)


def test_the_environment_can_say_everything() -> None:
    environ = {
        "REQUEUE_DATA_DIR": "/data",
        "REQUEUE_NATS_SERVERS": "nats://a, tls://b:5222",
        "REQUEUE_SHUTDOWN_GRACE": "1m",
        "REQUEUE_MAX_QUEUES": "7",
        "REQUEUE_INTAKE_BUFFER_BYTES": "2MiB",
        "REQUEUE_DEFAULTS_BACKOFF": "1s,5s",
        "REQUEUE_DEFAULTS_JITTER": "0.5",
        "REQUEUE_DEFAULTS_ALLOW_SUBJECTS": "orders.>,mail.*",
        "REQUEUE_DEFAULTS_COUNT_NO_RESPONDERS": "false",
        "REQUEUE_QUEUES": '[{"name": "orders", "maxRate": 5}]',
        "REQUEUE_HTTP": "",
    }
    settings = load_settings(None, {}, environ=environ)
    assert settings.nats.servers == ("nats://a:4222", "tls://b:5222")
    assert (settings.shutdown_grace_ns, settings.max_queues) == (60 * NS_PER_S, 7)
    assert settings.intake_buffer_bytes == 2 << 20
    orders = settings.policy_for("orders")
    assert (orders.backoff, orders.backoff_list_ns) == (Backoff.LIST, (NS_PER_S, 5 * NS_PER_S))
    assert (orders.jitter, orders.max_rate, orders.count_no_responders) == (0.5, 5.0, False)
    assert orders.allow_subjects == ("orders.>", "mail.*")
    assert settings.http is None


def test_settings_made_by_hand_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUEUE_FLEET", "elsewhere")
    settings = Settings(data_dir=Path("d"), shutdown_grace_ns=5)
    assert (settings.fleet, settings.shutdown_grace_ns, settings.origin) == ("default", 5, None)
    assert load_settings(None, {"data_dir": "d"}).fleet == "elsewhere"


def test_loaded_settings_know_where_they_came_from(file: Path) -> None:
    file.write_text("data_dir: d")
    origin = load_settings(file, {"http": ":1"}, environ={"A": "b"}).origin
    assert origin is not None
    assert (origin.config_file, origin.flags, origin.environ) == (file, {"http": ":1"}, {"A": "b"})


def test_every_spelling_of_a_key_is_understood(file: Path) -> None:
    file.write_text("defaults: {maxBackoff: 5s, min_backoff_ns: 2000000000}\nshutdown_grace_ns: 3\n")
    settings = load_settings(file, {"data_dir": "d", "defaults.max_backoff": "7s"}, environ={})
    assert settings.defaults.max_backoff_ns == 7 * NS_PER_S
    assert settings.defaults.min_backoff_ns == 2 * NS_PER_S
    assert settings.shutdown_grace_ns == 3


def test_an_empty_file_and_null_say_nothing(file: Path) -> None:
    file.write_text("")
    assert load_settings(file, {"data_dir": "d"}, environ={}).fleet == "default"
    file.write_text("nats:\ndefaults:\nqueues:\nlog_level: ~\nhttp: ~\n")
    settings = load_settings(file, {"data_dir": "d"}, environ={})
    assert (settings.queues, settings.log_level, settings.nats.name) == ((), "info", "requeue-nats")


def test_yaml_words_and_times_are_texts(file: Path) -> None:
    file.write_text("queues: [{name: no}, {name: on}, {name: 2026-01-01}, {name: 0123}, {name: 1e}]")
    names = [queue.name for queue in load_settings(file, {"data_dir": "d"}, environ={}).queues]
    assert names == ["no", "on", "2026-01-01", "0123", "1e"]


def test_numbers_of_yaml_are_numbers(file: Path) -> None:
    file.write_text("defaults: {retries: 7, jitter: .5, max_rate: 1e3, count_no_responders: false}")
    defaults = load_settings(file, {"data_dir": "d"}, environ={}).defaults
    assert (defaults.retries, defaults.jitter, defaults.max_rate) == (7, 0.5, 1000.0)
    assert defaults.count_no_responders is False


# -- policies -------------------------------------------------------------------------------------------


def test_a_queue_inherits_what_it_leaves_out(file: Path) -> None:
    file.write_text(
        "defaults: {retries: 5, max_backoff: 10h, max_rate: 9}\n"
        "queues: [{name: orders, min_backoff: 2h}, {name: free, max_rate: null}]\n"
    )
    settings = load_settings(file, {"data_dir": "d"}, environ={})
    orders = policy_for(settings, "orders")
    assert (orders.retries, orders.min_backoff_ns, orders.max_rate) == (5, 7200 * NS_PER_S, 9)
    assert policy_for(settings, "free").max_rate is None
    assert policy_for(settings, "unheard") == settings.defaults


def test_a_copy_with_new_policies_does_not_use_the_old_ones() -> None:
    old = load_settings(None, {"data_dir": "d", "queues": [{"name": "a", "retries": 1}]}, environ={})
    assert old.policy_for("a").retries == 1
    new = load_settings(None, {"data_dir": "d", "queues": [{"name": "a", "retries": 2}]}, environ={})
    copy = old.model_copy(update={"queues": new.queues, "defaults": new.defaults})
    assert (old.policy_for("a").retries, copy.policy_for("a").retries) == (1, 2)


def test_a_queue_that_contradicts_the_defaults_is_a_mistake(file: Path) -> None:
    (mistake,) = mistakes_in(file, "defaults: {max_backoff: 1m}\nqueues: [{name: orders, min_backoff: 1h}]\n")
    assert mistake == (
        "worker.yaml:2: queues: 'orders' does not go with the defaults: "
        "min_backoff 1h0m0s is more than max_backoff 1m0s; it is at most that"
    )


def test_a_queue_stands_once(file: Path) -> None:
    content = "queues: [{name: a}, {name: b}, {name: a}]"
    assert mistakes_in(file, content) == (
        "worker.yaml:1: queues: the name 'a' stands 2 times; once is right",
    )


@pytest.mark.parametrize("place", ["defaults: {%s}", "queues: [{name: a, %s}]"])
def test_dead_letters_do_not_go_into_the_intake(file: Path, place: str) -> None:
    (mistake,) = mistakes_in(file, place % "dead_letter_subject: requeue.dead")
    assert "dead_letter_subject 'requeue.dead' is a subject of the intake, requeue.>" in mistake
    file.write_text(place % "dead_letter_subject: dead.requeue")
    load(file, {"data_dir": "data"}, environ={})


# -- mistakes -------------------------------------------------------------------------------------------


def test_every_mistake_is_told_at_once_with_its_place(file: Path) -> None:
    found = mistakes_in(
        file,
        "fleet: a b\n"
        "log_level: chatty\n"
        "defaults:\n"
        "  ack_timeout: 13h\n"
        "queues:\n"
        "  - name: orders\n"
        "    weight: 0\n"
        "  - retries: 3\n",
    )
    assert found == (
        "worker.yaml:1: fleet: 'a b' is no name; it is 1 to 128 of A-Z a-z 0-9 _ . -",
        "worker.yaml:2: log_level: should be 'debug', 'info', 'warning' or 'error'; got 'chatty'",
        "worker.yaml:4: defaults.ack_timeout: ack_timeout 13h0m0s is out of range; "
        "it is more than 0 and at most 12h",
        "worker.yaml:7: queues[0].weight: should be greater than or equal to 1; got 0",
        "worker.yaml:8: queues[1].name: is missing",
    )


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("data_dri: x", "data_dri: unknown key; did you mean data_dir?"),
        ("shutdownGrace: 3s", "shutdownGrace: unknown key; did you mean shutdown_grace?"),
        ("log-level: info", "log-level: unknown key; did you mean log_level?"),
        ("servers: [a]", "servers: unknown key; did you mean nats.servers?"),
        ("ca_file: x", "ca_file: unknown key; did you mean nats.tls.ca_file?"),
        ("retries: 3", "retries: unknown key; did you mean defaults.retries?"),
        ("nats: {tls: {cafile: x}}", "nats.tls.cafile: unknown key; did you mean ca_file?"),
        ("defaults: {min_backof: 1s}", "defaults.min_backof: unknown key; did you mean min_backoff?"),
        ("queues: [{name: a, maxrate: 1}]", "queues[0].maxrate: unknown key; did you mean max_rate?"),
        ("nats: {colour: red}", "nats.colour: unknown key; known here: servers, name, user,"),
    ],
)
def test_an_unknown_key_is_told_what_was_meant(file: Path, content: str, hint: str) -> None:
    (mistake,) = mistakes_in(file, content)
    assert mistake.startswith(f"worker.yaml:1: {hint}")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- a", "worker.yaml: is a list; write settings, one `key: value` a line"),
        ("just words", "worker.yaml: is a str; write settings, one `key: value` a line"),
        ("a: [", "worker.yaml:1: is not YAML: expected the node content"),
        ("a: 1\nb: {\n", "worker.yaml:3: is not YAML: expected the node content"),
        ("a: !!python/object:os.system {}", "worker.yaml:1: is not YAML: could not determine a constructor"),
        ("fleet: a\nfleet: b", "worker.yaml:2: fleet: stands in line 1 too; keep one"),
        ("nats: {name: a, name: b}", "worker.yaml:1: nats.name: stands in line 1 too; keep one"),
        (
            "defaults: {max_rate: 1, maxRate: 2}",
            "worker.yaml:1: defaults.max_rate: stands twice, as maxRate too",
        ),
        ("nats: 5", "worker.yaml:1: nats: should be a valid dictionary"),
        ("queues: {orders: {}}", "worker.yaml:1: queues: should be a valid tuple"),
        ("queues: [orders]", "worker.yaml:1: queues[0]: should be a valid dictionary"),
        ("fleet: 5", "worker.yaml:1: fleet: should be a valid string; got 5; put quotes around it"),
        ("http: 8080", "worker.yaml:1: http: '8080' is not HOST:PORT; write it like 127.0.0.1:8080"),
        ("shutdown_grace: 5x", "worker.yaml:1: shutdown_grace: '5x' has the unknown unit"),
        ("stats_interval: 0s", "worker.yaml:1: stats_interval: is 0; it is more than 0"),
        ("intake_buffer_bytes: 5", "worker.yaml:1: intake_buffer_bytes: should be greater than or equal to"),
        ("max_in_flight_bytes: lots", "worker.yaml:1: max_in_flight_bytes: 'lots' is not a size"),
        ("instance_id: ..", "worker.yaml:1: instance_id: '..' begins with a dot"),
        ("instance_id: a/b", "worker.yaml:1: instance_id: 'a/b' is no name"),
        ("subject: '>'", "worker.yaml:1: subject: '>' would take in more than what is meant"),
        ("subject: '*.requeue'", "worker.yaml:1: subject: '*.requeue' would take in more"),
        ("subject: $JS.API", "worker.yaml:1: subject: '$JS.API' would take in more"),
        ("subject: a..b", "worker.yaml:1: subject: 'a..b' is not a subject pattern"),
        ("queue_group: a b", "worker.yaml:1: queue_group: 'a b' is no queue group"),
        ("data_dir: ''", "worker.yaml:1: data_dir: is empty; name a path"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line(file: Path, content: str, text: str) -> None:
    file.write_text(content)
    (mistake,) = mistakes(file, {} if content.startswith("data_dir") else None)
    assert mistake.startswith(text)


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    assert mistakes(None, REQUEUE_MAX_QUEUES="many") == (
        "REQUEUE_MAX_QUEUES: should be a valid integer, unable to parse string as an integer; got 'many'",
    )
    assert mistakes(None, REQUEUE_QUEUES="[") == (
        "REQUEUE_QUEUES: is not YAML or JSON; write a list, like [{name: orders, retries: 5}]",
    )


def test_a_mistake_in_a_flag_names_the_flag(file: Path) -> None:
    file.write_text("shutdown_grace: 3s")
    (mistake,) = mistakes(file, {"data_dir": "d", "shutdown_grace": "5"})
    assert (
        mistake == "--shutdown-grace: '5' is not a duration; every number needs a unit: h, m, s, ms, us or ns"
    )


def test_a_missing_data_directory_is_told_how_to_give_it() -> None:
    assert mistakes(None, {}) == (
        "data_dir: is missing; give --data-dir or REQUEUE_DATA_DIR, or data_dir in the configuration file",
    )


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path)
    assert mistake == "worker.yaml: cannot read the configuration file: Is a directory"
    (mistake,) = mistakes(tmp_path / "none")
    assert mistake.endswith("cannot read the configuration file: No such file or directory")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert mistakes(tmp_path / "binary")[0].endswith("is not text in UTF-8")


@pytest.mark.parametrize("content", ["queues: &q [*q]", "nats: &n {tls: *n}", "x: &x {y: [*x]}"])
def test_an_anchor_inside_itself_is_a_mistake_and_no_crash(file: Path, content: str) -> None:
    assert mistakes_in(file, content) == ("worker.yaml: is not YAML: an anchor stands inside itself",)


def test_anchors_and_merge_keys_share_what_queues_have_in_common(file: Path) -> None:
    file.write_text("queues: [&base {name: a, retries: 3, delay: 1s}, {<<: *base, name: b, retries: 4}]")
    settings = load_settings(file, {"data_dir": "d"}, environ={})
    assert [(q.name, q.retries, q.delay_ns) for q in settings.queues] == [("a", 3, 10**9), ("b", 4, 10**9)]


# -- warnings -------------------------------------------------------------------------------------------


def test_a_misspelt_variable_is_a_warning_and_service_links_are_none() -> None:
    environ = {
        "REQUEUE_SUBJET": "x",
        "REQUEUE_SERVERS": "x",
        "REQUEUE_NATS_PORT": "tcp://10.0.0.1:4222",
        "REQUEUE_HTTP_SERVICE_HOST": "10.0.0.1",
        "REQUEUE_HTTP_PORT_8080_TCP_ADDR": "10.0.0.1",
        "REQUEUE_CONFIG": "file",
        "SUBJECT": "x",
    }
    assert load(None, {"data_dir": "d"}, environ=environ).warnings == (
        "REQUEUE_SERVERS is no setting and was ignored; did you mean REQUEUE_NATS_SERVERS?",
        "REQUEUE_SUBJET is no setting and was ignored; did you mean REQUEUE_SUBJECT?",
    )


def test_a_bare_small_number_as_a_duration_is_a_warning(file: Path) -> None:
    file.write_text(
        "shutdown_grace: 15\ndefaults: {delay: 0, backoff: [1, 5s]}\nqueues: [{name: a, ttl: 60}]"
    )
    warnings = [text.removeprefix(f"{file}:") for text in load(file, {"data_dir": "d"}, environ={}).warnings]
    assert [text.split(" has")[0] for text in warnings] == [
        "1: shutdown_grace: 15",
        "2: defaults.backoff: 1",
        "3: queues[0].ttl: 60",
    ]
    assert warnings[0].endswith("is taken as nanoseconds; write 15s or 15ns")


# -- servers and secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("localhost", "nats://localhost:4222"),
        ("localhost:5222", "nats://localhost:5222"),
        ("tls://h", "tls://h:4222"),
        ("wss://h", "wss://h:443"),
        ("nats://[::1]", "nats://[::1]:4222"),
        (" nats://u:p@h:1 ", "nats://u:p@h:1"),
    ],
)
def test_a_server_gets_its_scheme_and_port(written: str, url: str) -> None:
    assert load_settings(None, {"data_dir": "d", "nats.servers": (written,)}, environ={}).nats.servers == (
        url,
    )


@pytest.mark.parametrize(
    ("servers", "text"),
    [
        ("http://u:hush@h", "'http://***@h' has the scheme 'http'; it is nats, tls, ws or wss"),
        ("nats://u:hush@h:port", "'nats://***@h:port' has a port that is none"),
        ("nats://", "'nats://' is no server URL"),
        ("nats://a b", "'nats://a b' is no server URL"),
        (",", "is empty; name one server at least"),
        ("ws://a,nats://b", "mix websocket (ws, wss) and plain NATS URLs"),
    ],
)
def test_what_is_no_server_is_told_without_its_password(servers: str, text: str) -> None:
    (mistake,) = mistakes(None, REQUEUE_NATS_SERVERS=servers)
    assert mistake.startswith(f"REQUEUE_NATS_SERVERS: {text}")
    assert "hush" not in mistake


def test_secrets_are_never_shown() -> None:
    flags = {"data_dir": "d", "nats.servers": "nats://u:hush@h", "nats.token": "hush"}
    settings = load_settings(None, flags, environ={"REQUEUE_NATS_PASSWORD": "hush"})
    assert "hush" not in repr(settings) + str(settings) + repr(settings.origin)
    assert settings.nats.redacted_servers == ("nats://***@h:4222",)
    (mistake,) = mistakes(None, {"data_dir": "d", "nats.token": ["hush"]})
    assert mistake == "nats.token: should be a valid string"


def test_settings_do_not_change() -> None:
    settings = load_settings(None, {"data_dir": "d"}, environ={})
    with pytest.raises(ValidationError):
        settings.fleet = "other"
    with pytest.raises(ValidationError):
        settings.nats.name = "other"
    assert NatsSettings() == settings.nats
