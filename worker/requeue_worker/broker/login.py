"""Who the worker is at NATS: secrets and certificates, read anew for every attempt to connect.

So a corrected or rotated file is used at the next attempt, without a restart. nats-py reads credentials again too, but
loops for ever in a file without a JWT, keeps the public key of an nkey that was rotated, and never reads certificates a
second time; hence our own reading, of the same formats.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nkeys
from requeue_protocol.errors import RequeueError
from requeue_worker.credential_files import mistakes_in
from requeue_worker.nats_settings import NatsSettings, TlsSettings
from requeue_worker.setting_keys import shown

#: A credentials file as nsc writes it: blocks between dashed lines, the JWT first, then the seed.
_BLOCK = re.compile(r"-{3,}[^\n]*-{3,}\r?\n\s*([\w\-.=]+)\s*\r?\n-{3,}[^\n]*-{3,}")

Sign = Callable[[str], bytes]


class LoginError(RequeueError):
    """A secret or certificate cannot be used as it is now; the next attempt reads it again."""


@dataclass(frozen=True, slots=True)
class Login:
    """What one attempt to connect says. `sign` signs the server's nonce, base64; `tls` None: as the server asks."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    jwt: bytes | None = None
    nkey: str | None = None
    sign: Sign | None = None
    tls: ssl.SSLContext | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is anything for the server to check."""
        return any(part is not None for part in (self.user, self.token, self.sign))


def read_login(settings: NatsSettings) -> Login:
    """Read everything that the settings name. Raises LoginError with one sentence, without secrets."""
    for key, sentence in mistakes_in(settings):
        raise LoginError(f"{shown(key)}: {sentence}")
    try:
        tls = tls_context(settings.tls) if settings.tls.in_use else None
    except OSError as error:  # ssl.SSLError is one: the file was changed a moment ago
        raise LoginError(f"nats.tls: {error}") from None
    if settings.creds_file is not None:
        jwt, seed = _read_creds(settings.creds_file)
        return Login(jwt=jwt, sign=_signer(seed, settings.creds_file)[1], tls=tls)
    if settings.nkey_file is not None:
        nkey, sign = _signer(_read(settings.nkey_file), settings.nkey_file)
        return Login(nkey=nkey, sign=sign, tls=tls)
    if settings.token_file is not None:
        return Login(token=_read(settings.token_file), tls=tls)
    if settings.token is not None:
        return Login(token=settings.token.get_secret_value(), tls=tls)
    user = _read(settings.user_file) if settings.user_file is not None else settings.user
    if user is None:
        return Login(tls=tls)
    password = settings.password.get_secret_value() if settings.password is not None else ""
    if settings.password_file is not None:
        password = _read(settings.password_file)
    return Login(user=user, password=password, tls=tls)


def way_of(settings: NatsSettings) -> str:
    """The setting that the worker logs in by, for logs."""
    for key in ("creds_file", "nkey_file", "token_file", "token", "user_file", "user"):
        if getattr(settings, key) is not None:
            return f"nats.{key}"
    return "nats.tls.cert_file" if settings.tls.cert_file is not None else "none"


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """A client context with the CA, and the client certificate for mTLS. Raises OSError."""
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.cert_file is not None:
        context.load_cert_chain(str(tls.cert_file), str(tls.key_file) if tls.key_file else None)
    return context


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LoginError(f"cannot read {path}: {error}") from None


def _read_creds(path: Path) -> tuple[bytes, str]:
    blocks = _BLOCK.findall(_read(path))
    if len(blocks) < 2:
        raise LoginError(
            f"{path} is no credentials file, as nsc writes them with a user JWT and an nkey seed"
        )
    return blocks[0].encode(), blocks[1]


def _signer(seed: str, path: Path) -> tuple[str, Sign]:
    """Public key, and the function that signs with this seed."""

    def pair() -> nkeys.KeyPair:
        return nkeys.from_seed(bytearray(seed.encode()))  # type: ignore[no-untyped-call,no-any-return]

    def sign(nonce: str) -> bytes:
        key = pair()
        signature = key.sign(nonce.encode())  # type: ignore[no-untyped-call]
        key.wipe()  # type: ignore[no-untyped-call]
        return base64.b64encode(signature)

    try:
        key = pair()
        public: str = key.public_key.decode()
        key.wipe()  # type: ignore[no-untyped-call]
    except Exception:  # nkeys raises its own, binascii's and struct's: all say that the seed is none
        raise LoginError(f"{path} holds no seed of a user nkey; that begins with SU") from None
    return public, sign
