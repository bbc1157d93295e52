"""The record of every act; no record, no token."""
