"""`python -m pyro_seq` is `pyroseq`."""

from pyro_seq.cli import main

if __name__ == "__main__":
    main()
