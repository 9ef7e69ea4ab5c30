from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from requeue_worker.settings import ConfigError, NatsSettings, load

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
CREDS = f"""-----BEGIN NATS USER JWT-----
eyJ0eXAiOiJKV1QifQ.e30.sig
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""


def secret(directory: Path, name: str, content: str) -> str:
    path = directory / name
    path.write_text(content)
    return str(path)


def nats(flags: dict[str, object], **environ: str) -> tuple[NatsSettings, tuple[str, ...]]:
    loaded = load(None, {"data_dir": "d", **flags}, environ=environ)
    return loaded.settings.nats, loaded.warnings


def mistakes(flags: dict[str, object], **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        nats(flags, **environ)
    return caught.value.mistakes


def ways_in_use(settings: NatsSettings) -> set[str]:
    keys = (
        "creds_file",
        "nkey_file",
        "token",
        "token_file",
        "user",
        "user_file",
        "password",
        "password_file",
    )
    return {key for key in keys if getattr(settings, key) is not None}


# -- which way to log in ---------------------------------------------------------------------------------


def test_of_all_ways_in_one_source_the_first_is_used_and_the_rest_warned_of(tmp_path: Path) -> None:
    flags: dict[str, object] = {
        "nats.user": "me",
        "nats.password_file": secret(tmp_path, "password", "p"),
        "nats.token_file": secret(tmp_path, "token", "t"),
        "nats.nkey_file": secret(tmp_path, "nkey", SEED),
        "nats.creds_file": secret(tmp_path, "creds", CREDS),
    }
    for way, flag, left in (
        ("nats.creds_file", "--creds", {"creds_file"}),
        ("nats.nkey_file", "--nkey", {"nkey_file"}),
        ("nats.token_file", "--token-file", {"token_file"}),
        ("nats.user", "--user", {"user", "password_file"}),
    ):
        settings, warnings = nats(flags)
        assert ways_in_use(settings) == left
        assert all(text.endswith(f": is ignored, because {flag} is given too; keep one") for text in warnings)
        assert len(warnings) == {"--creds": 3, "--nkey": 2, "--token-file": 1, "--user": 0}[flag]
        del flags[way]


def test_a_higher_source_replaces_the_way_of_a_lower_one_without_a_word(tmp_path: Path) -> None:
    settings, warnings = nats({"nats.user": "me"}, REQUEUE_NATS_CREDS_FILE="/nowhere", REQUEUE_NATS_TOKEN="t")
    assert (ways_in_use(settings), warnings) == ({"user"}, ())


def test_user_and_password_may_come_from_different_sources(tmp_path: Path) -> None:
    settings, warnings = nats({"nats.user": "me"}, REQUEUE_NATS_PASSWORD="p")
    assert (ways_in_use(settings), warnings) == ({"user", "password"}, ())


def test_a_file_wins_over_the_value_beside_it_with_a_warning(tmp_path: Path) -> None:
    path = secret(tmp_path, "token", "t")
    settings, warnings = nats({}, REQUEUE_NATS_TOKEN="x", REQUEUE_NATS_TOKEN_FILE=path)
    assert ways_in_use(settings) == {"token_file"}
    assert warnings == (
        "REQUEUE_NATS_TOKEN: is ignored, because REQUEUE_NATS_TOKEN_FILE is given too; keep one",
    )


def test_a_value_of_a_higher_source_wins_over_a_file_of_a_lower_one(tmp_path: Path) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text("nats: {user: other, password_file: /nowhere}")
    environ = {"REQUEUE_NATS_PASSWORD": "p", "REQUEUE_NATS_USER": "me"}
    loaded = load(config, {"data_dir": "d"}, environ=environ)
    assert ways_in_use(loaded.settings.nats) == {"user", "password"}
    assert (loaded.settings.nats.user, loaded.warnings) == ("me", ())


def test_a_password_needs_a_user() -> None:
    assert mistakes({}, REQUEUE_NATS_PASSWORD="p") == (
        "nats: a password is given without a user; name the user too",
    )


# -- what stands in the files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("nats.creds_file", "--creds"),
        ("nats.nkey_file", "--nkey"),
        ("nats.token_file", "--token-file"),
        ("nats.tls.ca_file", "--tls-ca"),
        ("nats.tls.cert_file", "--tls-cert"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_flag(tmp_path: Path, key: str, flag: str) -> None:
    assert mistakes({key: str(tmp_path / "none")}) == (
        f"{flag}: cannot read {tmp_path}/none: No such file or directory",
    )
    assert mistakes({key: str(tmp_path)}) == (f"{flag}: cannot read {tmp_path}: Is a directory",)


@pytest.mark.parametrize("key", ["nats.token_file", "nats.nkey_file", "nats.creds_file"])
def test_an_empty_file_is_told(tmp_path: Path, key: str) -> None:
    path = secret(tmp_path, "empty", " \n")
    (mistake,) = mistakes({key: path})
    assert mistake.endswith(f"{path} is empty")


def test_creds_and_nkey_files_hold_what_they_should(tmp_path: Path) -> None:
    path = secret(tmp_path, "secret", "hush")
    (creds,) = mistakes({"nats.creds_file": path})
    (nkey,) = mistakes({"nats.nkey_file": path})
    assert (
        creds
        == f"--creds: {path} is no credentials file, as nsc writes them with a user JWT and an nkey seed"
    )
    assert nkey == f"--nkey: {path} holds no seed of a user nkey; that begins with SU"


def test_a_file_in_the_configuration_is_told_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text("nats:\n  tls:\n    ca_file: /nowhere\n")
    with pytest.raises(ConfigError) as caught:
        load(config, {"data_dir": "d"}, environ={})
    assert caught.value.mistakes == (
        f"{config}:3: nats.tls.ca_file: cannot read /nowhere: No such file or directory",
    )


def certificate(directory: Path, name: str, *options: str) -> tuple[str, str]:
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    out = ["-subj", f"/CN={name}", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([*new, *out, *(options or ("-nodes",))], check=True, capture_output=True)
    return str(cert), str(key)


def tls(cert: str, key: str | None, **more: str) -> dict[str, object]:
    return {"nats": {"tls": {"cert_file": cert, "key_file": key, **more}}}


def test_a_certificate_with_its_key_is_taken(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "worker")
    settings, _ = nats(tls(cert, key, ca_file=cert))
    assert settings.tls.in_use
    both = secret(tmp_path, "both", Path(cert).read_text() + Path(key).read_text())
    assert nats(tls(both, None))[0].tls.in_use
    assert not nats({})[0].tls.in_use


def test_a_certificate_and_key_that_do_not_fit_are_told(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "worker")
    _, other = certificate(tmp_path, "other")
    _, locked = certificate(tmp_path, "locked", "-passout", "pass:hush")
    noise = secret(tmp_path, "noise", "hush")
    assert mistakes(tls(cert, other)) == (
        f"--tls-cert: the key in {other} does not belong to the certificate in {cert}",
    )
    assert mistakes(tls(cert, locked)) == (
        f"--tls-cert: the key in {locked} is encrypted; a worker needs it in the clear",
    )
    assert mistakes(tls(noise, key)) == (
        f"--tls-cert: {noise} and {key} are no certificate and key in PEM form",
    )
    assert mistakes(tls(cert, None)) == (
        f"--tls-cert: {cert} and the key in it are no certificate and key in PEM form",
    )
    assert mistakes({"nats.tls.ca_file": noise}) == (f"--tls-ca: {noise} holds no certificates in PEM form",)
    assert mistakes({"nats.tls.key_file": key}) == (
        "nats.tls: key_file is given without cert_file; name the certificate too",
    )
