"""Signed bundles: an ed25519 signature over manifest.json, whose digests cover every file, graph and engine.

    manifest.sig    {"algorithm": "ed25519", "public_key": hex, "signature": hex} over the bytes of manifest.json

Keys are PEM files (PKCS 8 and SubjectPublicKeyInfo), as openssl reads and writes them. A bundle that changes (a new
precision, an engine, a verdict of the gate) has to be signed again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.core.files import read_json, write_aside, write_json
from anomalysd_edge.errors import BundleError, InputError, missing_extra

if TYPE_CHECKING:
    pass


SIGNATURE = "manifest.sig"
ALGORITHM = "ed25519"


def new_key(path: Path) -> Path:
    """Write a new private key to `path`, readable by its owner alone, and its public key to `path`.pub, returned.

    Raises InputError where `path` is there already: a lost key cannot be made again.
    """
    serialization, ed25519, _ = _cryptography()
    if path.exists():
        raise InputError(f"{path} is there already, and a private key is not overwritten; choose another name")
    private = ed25519.Ed25519PrivateKey.generate()
    with write_aside(path) as aside:
        aside.touch(mode=0o600)
        aside.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    public = path.with_name(path.name + ".pub")
    with write_aside(public) as aside:
        aside.write_bytes(
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return public


def check_key_pair(key: Path, public_key: Path | None = None) -> None:
    """Raise InputError unless `key` holds a private key to sign with, and `public_key`, where one is given, its public
    half: before anything is made that nobody could open."""
    serialization, _, _ = _cryptography()
    raw = _private_key(key).public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    if public_key is not None:
        trusted = _public_key(public_key).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        if raw != trusted:
            raise InputError(
                f"{key} signs for the public key {raw.hex()[:16]}..., and {public_key} is {trusted.hex()[:16]}...: "
                "what it signed would be refused; give the two halves of one key"
            )


def sign(manifest: Path, key: Path) -> Path:
    """Sign the file `manifest` with the private key in `key`; the signature's path. Raises InputError."""
    serialization, _, _ = _cryptography()
    private = _private_key(key)
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    target = manifest.with_name(SIGNATURE)
    signature = private.sign(_bytes(manifest))
    write_json(target, {"algorithm": ALGORITHM, "public_key": public.hex(), "signature": signature.hex()})
    return target


def _private_key(key: Path) -> Any:
    serialization, ed25519, _ = _cryptography()
    try:
        private = serialization.load_pem_private_key(_bytes(key), password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key} is no unencrypted private key in PEM ({error}); make one with --new-key") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise InputError(f"{key} holds a {type(private).__name__}, expected an ed25519 key; make one with --new-key")
    return private


def check_signature(data: bytes, folder: Path, key: Path) -> None:
    """Raise BundleError unless `folder`'s manifest.sig signs `data` with the key whose public half is in `key`."""
    serialization, _, invalid = _cryptography()
    public = _public_key(key)
    file = folder / SIGNATURE
    if not file.is_file():
        raise BundleError(f"{folder} is not signed ({SIGNATURE} is missing) and a signature is required: refused")
    found = read_json(file)
    if not isinstance(found, dict) or found.get("algorithm") != ALGORITHM:
        raise BundleError(f"{file} holds no {ALGORITHM} signature: sign the bundle again with 'sd-edge sign'")
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    if found.get("public_key") != raw:
        raise BundleError(
            f"{folder} was signed with the key {str(found.get('public_key'))[:16]}..., not with {raw[:16]}... "
            f"of {key}: refused"
        )
    try:
        public.verify(bytes.fromhex(str(found.get("signature"))), data)
    except (invalid, ValueError) as error:
        raise BundleError(
            f"the signature of {folder} does not fit its manifest: it was changed after signing (a new precision, "
            "engine or gate verdict, or by another hand): refused; whoever holds the key can sign it again"
        ) from error


def _public_key(key: Path) -> Any:
    serialization, ed25519, _ = _cryptography()
    try:
        public = serialization.load_pem_public_key(_bytes(key))
    except ValueError as error:
        raise InputError(f"{key} is no public key in PEM ({error}); give the .pub file of the signing key") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise InputError(f"{key} holds a {type(public).__name__}, expected an ed25519 public key")
    return public


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({os.strerror(error.errno or 0)}); check the path") from error


def _cryptography() -> tuple[Any, Any, Any]:
    """(serialization, ed25519, InvalidSignature) of the cryptography package. Raises MissingExtra."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise missing_extra("cryptography", "sign") from error
    return serialization, ed25519, InvalidSignature
