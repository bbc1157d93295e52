"""`python -m broker`: the penstock command."""

from broker.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
