"""PostgreSQL: every statement, and rows as typed values."""
