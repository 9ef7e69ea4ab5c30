from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from requeue_worker.cli import main
from requeue_worker.setting_keys import FLAGS, keys_of
from requeue_worker.settings import Settings, load_settings


def requeue_worker(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(main, args, env=environ, catch_exceptions=False, terminal_width=100)


# -- check-config ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.yaml"


def test_check_config_prints_policies_with_defaults_filled_in(file: Path) -> None:
    file.write_text("defaults: {retries: 5}\nqueues: [{name: orders, delay: 90s, backoff: [1s, 5s]}]\n")
    result = requeue_worker("check-config", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    document = yaml.safe_load(result.stdout)
    assert document["defaults"]["retries"] == 5
    assert document["defaults"]["max_backoff"] == "1h0m0s"
    (orders,) = document["queues"]
    assert (orders["name"], orders["retries"], orders["delay"]) == ("orders", 5, "1m30s")
    assert orders["ack_timeout"] == "15s"


def test_what_check_config_prints_is_a_configuration_that_says_the_same(file: Path, tmp_path: Path) -> None:
    file.write_text(
        "defaults: {backoff: linear, retries: unlimited, max_bytes: 5MiB, dead_letter_retention: 30d}\n"
        "queues: [{name: a, backoff: [1s, 5s]}, {name: b, backoff: fixed, allow_subjects: [x.>]}]\n"
    )
    printed = tmp_path / "printed.yaml"
    printed.write_text(requeue_worker("check-config", str(file)).stdout)
    before = load_settings(file, {"data_dir": "d"}, environ={})
    after = load_settings(printed, {"data_dir": "d"}, environ={})
    assert before.defaults == after.defaults
    assert [before.policy_for(name) for name in "abc"] == [after.policy_for(name) for name in "abc"]


def test_check_config_tells_every_mistake_and_exits_with_2(file: Path) -> None:
    file.write_text("retries: 3\ndata_dir: ''\nqueues: [{name: a, weight: 0}]\n")
    result = requeue_worker("check-config", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"requeue-worker: {file}:2: data_dir: is empty; name a path",
        f"requeue-worker: {file}:3: queues[0].weight: should be greater than or equal to 1; got 0",
        f"requeue-worker: {file}:1: retries: unknown key; did you mean defaults.retries?",
    ]


def test_check_config_looks_at_the_file_alone(file: Path) -> None:
    file.write_text("nats: {creds_file: /only/in/the/pod}\n")
    assert requeue_worker("check-config", str(file), REQUEUE_MAX_QUEUES="nonsense").exit_code == 0


def test_check_config_warns_on_standard_error(file: Path) -> None:
    file.write_text("shutdown_grace: 15\n")
    result = requeue_worker("check-config", str(file))
    assert result.exit_code == 0
    assert "requeue-worker: warning: " in result.stderr
    assert "warning" not in result.stdout


def test_check_config_of_no_file_exits_with_2(file: Path) -> None:
    result = requeue_worker("check-config", str(file))
    assert result.exit_code == 2
    assert "cannot read the configuration file: No such file" in result.stderr


# -- run with a wrong configuration ---------------------------------------------------------------------


def test_a_wrong_configuration_exits_with_2_and_a_sentence_for_each_mistake(file: Path) -> None:
    file.write_text("log_levle: debug\n")
    args = ("run", "--config", str(file), "--data-dir", "d", "--http", "here", "--tls-ca", "/none")
    result = requeue_worker(*args, REQUEUE_SHUTDOWN_GRACE="soon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "requeue-worker: --http: 'here' is not HOST:PORT; write it like 127.0.0.1:8080, [::1]:8080 or :8080",
        "requeue-worker: REQUEUE_SHUTDOWN_GRACE: 'soon' is not a duration; write it like 1h30m, 500ms or 0",
        f"requeue-worker: {file}:1: log_levle: unknown key; did you mean log_level?",
    ]


def test_no_data_directory_exits_with_2() -> None:
    result = requeue_worker("run")
    assert result.exit_code == 2
    assert "give --data-dir or REQUEUE_DATA_DIR" in result.stderr


def test_an_unknown_flag_exits_with_2_and_names_the_right_one() -> None:
    result = requeue_worker("run", "--sever", "x")
    assert result.exit_code == 2
    assert "--server" in result.stderr


def test_the_configuration_file_may_be_named_in_the_environment(file: Path) -> None:
    file.write_text("fleet: a b\n")
    result = requeue_worker("run", "--data-dir", "d", REQUEUE_CONFIG=str(file))
    assert result.exit_code == 2
    assert f"{file}:1: fleet: 'a b' is no name" in result.stderr


def test_every_flag_reaches_the_setting_that_it_stands_for() -> None:
    # All wrong at once: each complaint names the flag that it came by.
    wrong = {
        "--server": "http://x",
        "--subject": ">",
        "--queue-group": "a b",
        "--intake": "perhaps",
        "--admin-read-only": "perhaps",
        "--shards": "0",
        "--instance-id": "a/b",
        "--fleet": "a/b",
        "--http": "x",
        "--web": "x",
        "--web-changes": "perhaps",
        "--log-level": "x",
        "--log-format": "x",
        "--shutdown-grace": "x",
        "--data-dir": " ",
    }
    result = requeue_worker("run", *(part for pair in wrong.items() for part in pair))
    assert result.exit_code == 2
    told = {line.split(": ")[1] for line in result.stderr.splitlines()}
    assert told == set(wrong)
    for flag in set(FLAGS.values()) - set(wrong) - {"--user"}:  # one way to log in at a time
        result = requeue_worker("run", "--data-dir", "d", "--user", "me", flag, " ")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"requeue-worker: {flag}: is empty; name a path")


# -- help -----------------------------------------------------------------------------------------------


def test_help_shows_every_flag_once_with_its_variable_and_default() -> None:
    text = requeue_worker("run", "--help").stdout
    for key in keys_of(Settings):
        if key.flag is not None:
            assert len(re.findall(rf"^  {key.flag} ", text, re.MULTILINE)) == 1
            assert f"env: {key.env}]" in text
    for part in ("[default: nats://127.0.0.1:4222;", "[default: off;", "[default: 15s;", "[required;"):
        assert part in text
    assert "--config FILE" in text


def test_help_groups_its_flags_and_fits_the_terminal() -> None:
    text = requeue_worker("run", "--help").stdout
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert [heading.split(" (")[0] for heading in headings] == [
        "Where",
        "What",
        "Logging in to NATS",
        "TLS",
        "Process",
    ]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("args", [(), ("run",), ("check-config",)])
def test_every_command_explains_itself(args: tuple[str, ...]) -> None:
    for flag in ("-h", "--help"):
        assert requeue_worker(*args, flag).exit_code == 0


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"requeue-worker, version \d+\.\d+\.\d+\S*\n", requeue_worker("--version").stdout)
