"""Looks into the files that log a worker in to NATS before it starts: better one clear sentence than a
reconnect loop that never succeeds. The connection reads them again each time, so that a rotated secret needs
no restart.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from requeue_worker.nats_settings import NatsSettings, TlsSettings
from requeue_worker.setting_keys import Path as KeyPath


def mistakes_in(nats: NatsSettings) -> Iterator[tuple[KeyPath, str]]:
    """The settings whose file cannot be read or does not hold what it should, with a sentence each."""
    for key in ("user_file", "password_file", "token_file", "nkey_file", "creds_file"):
        path = getattr(nats, key)
        if path is not None:
            wrong = _secret_mistake(key, path)
            if wrong is not None:
                yield ("nats", key), wrong
    yield from _tls_mistakes(nats.tls)


def _secret_mistake(key: str, path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    except UnicodeDecodeError:
        return f"{path} is not text in UTF-8"
    if not text:
        return f"{path} is empty"
    if key == "creds_file" and not ("BEGIN NATS USER JWT" in text and "BEGIN USER NKEY SEED" in text):
        return f"{path} is no credentials file, as nsc writes them with a user JWT and an nkey seed"
    if key == "nkey_file" and not text.startswith("SU"):
        return f"{path} holds no seed of a user nkey; that begins with SU"
    return None


def _tls_mistakes(tls: TlsSettings) -> Iterator[tuple[KeyPath, str]]:
    wrong = False
    for key in ("ca_file", "cert_file", "key_file"):
        path = getattr(tls, key)
        if path is None:
            continue
        try:
            path.read_bytes()
        except OSError as error:
            wrong = True
            yield ("nats", "tls", key), f"cannot read {path}: {error.strerror}"
    if wrong:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is not None:
        try:
            context.load_verify_locations(tls.ca_file)
        except ssl.SSLError:
            yield ("nats", "tls", "ca_file"), f"{tls.ca_file} holds no certificates in PEM form"
    if tls.cert_file is not None:
        sentence = _pair_mistake(context, tls.cert_file, tls.key_file)
        if sentence is not None:
            yield ("nats", "tls", "cert_file"), sentence


def _pair_mistake(context: ssl.SSLContext, cert: Path, key: Path | None) -> str | None:
    asked = False

    def no_password() -> str:  # without it OpenSSL would ask on the terminal
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(cert, key, no_password)
    except (ssl.SSLError, ValueError) as error:
        if asked:
            return f"the key in {key or cert} is encrypted; a worker needs it in the clear"
        if "KEY_VALUES_MISMATCH" in str(error):
            return f"the key in {key or cert} does not belong to the certificate in {cert}"
        return f"{cert} and {key or 'the key in it'} are no certificate and key in PEM form"
    return None
