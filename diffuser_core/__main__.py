"""`python -m diffuser_core <verb>`."""

from diffuser_core.cli import main

if __name__ == '__main__':
    raise SystemExit(main())
