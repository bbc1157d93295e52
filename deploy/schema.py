"""Write migrations/schema.sql anew: what the migrations amount to, in one piece to read. Run it by `make schema`."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path

from broker.embedded import EmbeddedPostgres, find_programs
from broker.store.migrate import MIGRATIONS, migrate

HEADER = (
    "-- What the migrations amount to; written by `make schema`, compared with them by tests/unit/test_schema.py.\n\n"
)
# What pg_dump says about itself and to psql, and what no other version of PostgreSQL would understand.
NOISE = (
    r"^--\n-- .*\n--\n",
    r"^(SET \w+ = .*;|SELECT pg_catalog\.set_config\(.*\);|\\(un)?restrict .*|-- Dumped .*)\n",
)


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="penstock-schema-") as directory,
        EmbeddedPostgres(Path(directory) / "postgres", durable=False) as server,
    ):
        asyncio.run(migrate(server.dsn))
        options = ("--schema-only", "--no-owner", "--exclude-table=schema_migration")
        command = [str(find_programs() / "pg_dump"), *options, server.dsn]
        schema = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for noise in NOISE:
        schema = re.sub(noise, "", schema, flags=re.MULTILINE)
    schema = re.sub(r"\n{3,}", "\n\n", schema).strip()
    (MIGRATIONS / "schema.sql").write_text(f"{HEADER}{schema}\n")


if __name__ == "__main__":
    main()
