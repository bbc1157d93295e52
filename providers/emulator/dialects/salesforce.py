"""Salesforce: an instance URL instead of a lifetime, an identity URL, leads, and errors that are arrays.

https://help.salesforce.com/s/articleView?id=xcloud.remoteaccess_oauth_web_server_flow.htm
https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_sobject_basic_info_post.htm
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qs

from broker.oauth.model import ProviderDescriptor
from providers.emulator.dialects.base import Dialect, Fault, Issued, Refusal, Resource, Visit
from providers.emulator.http import Answer, json_answer
from providers.emulator.ledger import AccessToken
from providers.emulator.people import Identity, Person

_VERSIONS = (("Winter '24", "59.0"), ("Spring '26", "66.0"))
_REQUIRED = ("LastName", "Company")
_SOQL = re.compile(
    r"\s*SELECT\s+Id\s+FROM\s+Lead\s+WHERE\s+Email\s*=\s*'(?P<email>(?:[^'\\]|\\.)*)'(?:\s+LIMIT\s+(?P<limit>[0-9]+))?\s*",
    re.IGNORECASE,
)


class Salesforce(Dialect):
    """One org for each person, at its own instance. Leads are kept while the emulator runs."""

    refusals: ClassVar[Mapping[Fault, Refusal]] = {
        "bad_code": Refusal(code="invalid_grant", description="invalid authorization code"),
        "bad_redirect_uri": Refusal(code="redirect_uri_mismatch", description="redirect_uri must match configuration"),
        "missing_verifier": Refusal(code="invalid_grant", description="invalid code verifier"),
        "bad_verifier": Refusal(code="invalid_request", description="code challenge does not match verifier"),
        "dead_refresh_token": Refusal(code="invalid_grant", description="expired access/refresh token"),
        "unknown_client": Refusal(code="invalid_client_id", description="client identifier invalid"),
        "bad_client_secret": Refusal(code="invalid_client", description="invalid client credentials"),
        "unsupported_grant_type": Refusal(code="unsupported_grant_type", description="grant type not supported"),
    }
    refresh_token_prefix = "5Aep861"

    def __init__(self, descriptor: ProviderDescriptor) -> None:
        super().__init__(descriptor)
        self._leads: dict[str, dict[str, dict[str, Any]]] = {}  # by instance, then by id

    # --- people -------------------------------------------------------------------------------------------------------

    @property
    def _login_host(self) -> str:
        return self.descriptor.config["login_host"].default or "login.salesforce.com"

    def instance(self, person: Person) -> str:
        """Return the host of a person's org."""
        organization = person.organization.lower()
        is_sandbox = self._login_host == "test.salesforce.com"
        return f"{organization}--uat.sandbox.my.salesforce.com" if is_sandbox else f"{organization}.my.salesforce.com"

    def identity(self, person: Person) -> Identity:
        return Identity(
            id=f"0055g000000{person.number}AAA",
            name=person.email,
            email=person.email,
            tenant_id=f"00D5g000000{person.number}EAA",
            tenant_name=person.organization,
        )

    def identity_url(self, person: Person) -> str:
        identity = self.identity(person)
        return f"https://{self._login_host}/id/{identity.tenant_id}/{identity.id}"

    def profile(self, person: Person) -> dict[str, Any]:
        identity = self.identity(person)
        return {
            **super().profile(person),
            "sub": self.identity_url(person),
            "user_id": identity.id,
            "organization_id": identity.tenant_id,
            "preferred_username": person.email,
            "nickname": person.login,
            "email_verified": True,
        }

    def metadata(self, name: str, person: Person) -> str | None:
        values = {
            "instance_url": f"https://{self.instance(person)}",
            "organization_id": self.identity(person).tenant_id,
        }
        return values.get(name)

    # --- answers ------------------------------------------------------------------------------------------------------

    def denial(self) -> dict[str, str]:
        return {"error": "access-denied", "error_description": "end-user denied authorization"}

    def token_members(self, issued: Issued) -> dict[str, Any]:
        """Return the identity, when it was stated, and a signature over both under the client secret."""
        identity_url = self.identity_url(issued.person)
        issued_at = str(int(issued.issued_at.timestamp() * 1000))
        secret = (issued.client.client_secret or "").encode()
        signature = hmac.digest(secret, f"{identity_url}{issued_at}".encode(), hashlib.sha256)
        return {
            "id": identity_url,
            "instance_url": f"https://{self.instance(issued.person)}",
            "issued_at": issued_at,
            "signature": base64.b64encode(signature).decode(),
        }

    def introspection_members(self, token: AccessToken) -> dict[str, Any]:
        return {"sub": self.identity_url(token.grant.person), "username": token.grant.person.email}

    def nothing_to_revoke(self) -> Answer:
        return json_answer({"error": "invalid_token", "error_description": "invalid token"}, 400)

    def dead_token(self) -> Answer:
        return _failure(401, "INVALID_SESSION_ID", "Session expired or invalid")

    # --- the API ------------------------------------------------------------------------------------------------------

    def resources(self) -> Sequence[Resource]:
        return (
            Resource("GET", "/services/data/", self._versions),
            Resource("POST", "/services/data/{version}/sobjects/Lead", self._create_lead),
            Resource("GET", "/services/data/{version}/query", self._query),
        )

    def _versions(self, visit: Visit) -> Answer:
        versions = [
            {"label": label, "url": f"/services/data/v{version}", "version": version} for label, version in _VERSIONS
        ]
        return self._refused(visit) or json_answer(versions)

    def _create_lead(self, visit: Visit) -> Answer:
        if refused := self._refused(visit):
            return refused
        try:
            lead = json.loads(visit.request.body)
        except ValueError:
            return _failure(400, "JSON_PARSER_ERROR", "The body is not JSON")
        if not isinstance(lead, dict):
            return _failure(400, "JSON_PARSER_ERROR", "The body is not a JSON object")
        missing = [name for name in _REQUIRED if not lead.get(name)]
        if missing:
            text = f"Required fields are missing: [{', '.join(missing)}]"
            return _failure(400, "REQUIRED_FIELD_MISSING", text, missing)
        leads = self._leads.setdefault(self.instance(visit.person), {})
        lead_id = f"00Q5g000{visit.person.number}{len(leads) + 1:0>3}EAA"
        leads[lead_id] = lead
        return json_answer({"id": lead_id, "success": True, "errors": []}, 201)

    def _query(self, visit: Visit) -> Answer:
        if refused := self._refused(visit):
            return refused
        match = _SOQL.fullmatch(parse_qs(visit.request.query).get("q", [""])[0])
        if match is None:
            text = "Only SELECT Id FROM Lead WHERE Email = '…' [LIMIT n] is emulated"
            return _failure(400, "MALFORMED_QUERY", text)
        email = re.sub(r"\\(.)", r"\1", match["email"])
        leads = self._leads.get(self.instance(visit.person), {})
        found = [lead_id for lead_id, lead in leads.items() if lead.get("Email") == email]
        found = found[: int(match["limit"])] if match["limit"] else found
        url = f"/services/data/{visit.path['version']}/sobjects/Lead"
        records = [{"attributes": {"type": "Lead", "url": f"{url}/{each}"}, "Id": each} for each in found]
        return json_answer({"totalSize": len(records), "done": True, "records": records})

    def _refused(self, visit: Visit) -> Answer | None:
        """Refuse a token at another org's instance, or one that is not for the API."""
        if visit.request.host != self.instance(visit.person):
            return self.dead_token()
        if not {"api", "full"}.intersection(visit.scopes):
            return _failure(401, "INVALID_SESSION_ID", "This session is not valid for use with the REST API")
        return None


def _failure(status: int, code: str, message: str, fields: Sequence[str] | None = None) -> Answer:
    failure: dict[str, Any] = {"message": message, "errorCode": code}
    if fields is not None:
        failure["fields"] = list(fields)
    return json_answer([failure], status)
