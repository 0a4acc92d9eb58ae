"""Workload identities, signed as Nomad's servers sign them: key, JWKS document, tokens.

Claims: https://developer.hashicorp.com/nomad/docs/concepts/workload-identity
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

AUDIENCE: Final = "vault.io"
HOUR: Final = 3600.0
BITS: Final = 2048


class Signer:
    """One signing key. RS256 is what Nomad has used since 1.7; EdDSA is made faster."""

    def __init__(self, algorithm: Literal["RS256", "EdDSA"] = "EdDSA") -> None:
        self.algorithm = algorithm
        self.key_id = str(uuid.uuid4())
        self._key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
        if algorithm == "RS256":
            self._key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
        else:
            self._key = ed25519.Ed25519PrivateKey.generate()

    def jwks(self) -> dict[str, Any]:
        """What `/.well-known/jwks.json` answers."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            key = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        else:
            key = OKPAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        key.pop("key_ops", None)
        return {"keys": [{**key, "kid": self.key_id, "use": "sig", "alg": self.algorithm}]}

    def public_pem(self) -> str:
        """The public key, for servers that cannot reach the document."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Any claims."""
        return jwt.encode(dict(claims), self._key, self.algorithm, headers={"kid": self.key_id})

    def verified(self, token: str) -> dict[str, Any]:
        """The claims of what this key has signed and what has not ended; nobody's audience is asked for. Raises
        ValueError."""
        try:
            found = jwt.decode(token, self._key.public_key(), [self.algorithm], options={"verify_aud": False})
        except jwt.InvalidTokenError as error:
            raise ValueError(str(error)) from error
        return dict(found)

    def identity(
        self,
        alloc: Mapping[str, Any],
        job: Mapping[str, Any],
        task: str,
        *,
        name: str = "vault_default",
        audience: Sequence[str] = (AUDIENCE,),
        ttl: float = HOUR,
    ) -> str:
        """The token of one identity of one task of an allocation; `ttl` in seconds."""
        now = int(time.time())
        region, namespace, group = job.get("Region") or "global", job["Namespace"], alloc["TaskGroup"]
        # A child's identities are of its parent: so many dispatches are one subject.
        subject = job.get("ParentID") or job["ID"]
        claims = {
            "aud": audience[0] if len(audience) == 1 else list(audience),
            "iat": now,
            "nbf": now,
            "exp": now + int(ttl),
            "jti": str(uuid.uuid4()),
            "sub": f"{region}:{namespace}:{subject}:{group}:{task}:{name}",
            "nomad_namespace": namespace,
            "nomad_job_id": subject,
            "nomad_allocation_id": alloc["ID"],
            "nomad_task": task,
        }
        return self.sign(claims)
