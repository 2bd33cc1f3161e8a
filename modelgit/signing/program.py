"""`ssh-keygen -Y`: the program that signs and checks.  mgit never touches a private key itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, MissingExtraError, UsageError
from modelgit.signing.armor import read_armor
from modelgit.signing.signers import AllowedSigner

if TYPE_CHECKING:
    import subprocess

__all__ = ["NAMESPACE", "PROGRAM", "matches", "sign"]

PROGRAM = "ssh-keygen"
NAMESPACE = "mgit-eval"
_TIMEOUT_S = 120  # an agent may ask its owner to touch a token


def sign(statement: str, key: Path, *, namespace: str = NAMESPACE, program: str = PROGRAM) -> str:
    """The armoured signature over `statement` with the private key in the file `key`, or with the agent's.

    The key is looked for in the ssh agent first, then in the file.  Raises UsageError when the file is missing, is no
    key, or has a passphrase and the agent does not hold it; MissingExtraError without the program.
    """
    if not key.is_file():
        raise UsageError(
            f"the signing key {key} is not there", hint="`mgit config set --user user.signing_key PATH` names another"
        )
    done = _run([program, "-Y", "sign", "-n", namespace, "-f", str(key)], statement)
    words = done.stderr.decode(errors="replace").strip()
    if done.returncode == 0:
        signature = done.stdout.decode("ascii", errors="replace")
        read_armor(signature)
        return signature
    if "passphrase" in words or "No private key found" in words:
        raise UsageError(
            f"the signing key {key} has a passphrase, and no ssh agent holds it", hint=f"`ssh-add '{key}'`, then again"
        )
    if "load public key" in words or "invalid format" in words:
        raise UsageError(f"{key} is not a private ssh key", hint="`ssh-keygen -t ed25519` makes one")
    said = words.splitlines()[-1][:200] if words else f"exit code {done.returncode}"
    raise UsageError(f"{program} could not sign with {key}: {said!a}", hint=f"`ssh-keygen -y -f '{key}'` tests the key")


def matches(
    statement: str, signature: str, signer: AllowedSigner, *, namespace: str = NAMESPACE, program: str = PROGRAM
) -> bool:
    """Whether `signature` was made over exactly `statement`, in `namespace`, with the key of `signer`.

    When a key is valid is not asked here.  Raises MissingExtraError without the program.
    """
    import tempfile

    who = signer.principals[0]
    # A file of one line, made of what was understood: two readers of the recorded file cannot differ.
    line = f'{who} namespaces="{namespace}" {signer.key_type} {base64.b64encode(signer.key).decode()}\n'
    with tempfile.TemporaryDirectory(prefix="mgit-") as folder:
        allowed, armor = Path(folder) / "allowed", Path(folder) / "signature"
        allowed.write_text(line, encoding="ascii")
        armor.write_text(signature, encoding="ascii", errors="replace")
        command = [program, "-Y", "verify", "-n", namespace, "-I", who, "-f", str(allowed), "-s", str(armor)]
        return _run(command, statement).returncode == 0


def _run(command: Sequence[str], statement: str) -> subprocess.CompletedProcess[bytes]:
    import subprocess  # slow to load, and most logs have no signature to check

    try:
        # A session of its own has no terminal: a key with a passphrase fails and says so, where a script would hang.
        return subprocess.run(
            command,
            input=statement.encode(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise MissingExtraError(
            f"signatures need the program {command[0]}, which is not installed",
            hint="`apt install openssh-client` (or the OpenSSH of your system) brings it",
        ) from None
    except subprocess.TimeoutExpired:
        raise IntegrityError(f"{command[0]} did not answer within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise MissingExtraError(f"{command[0]} cannot be run: {error.strerror or error}") from None
