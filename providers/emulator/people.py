"""The people who have accounts at every emulated provider: two of them, in two organizations."""

from __future__ import annotations

import msgspec


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody with an account; each dialect makes its own identifiers from *login*, *organization* and *number*."""

    login: str
    given_name: str
    family_name: str
    organization: str
    number: int  # four digits

    @property
    def name(self) -> str:
        return f"{self.given_name} {self.family_name}"

    @property
    def domain(self) -> str:
        return f"{self.organization.lower()}.example"

    @property
    def email(self) -> str:
        return f"{self.login}@{self.domain}"


PEOPLE = {
    person.login: person
    for person in (
        Person(login="ada", given_name="Ada", family_name="Lovelace", organization="Acme", number=1001),
        Person(login="grace", given_name="Grace", family_name="Hopper", organization="Globex", number=1002),
    )
}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A person as one provider knows them."""

    id: str
    name: str
    email: str
    tenant_id: str
    tenant_name: str
