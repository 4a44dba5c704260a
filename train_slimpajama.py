"""Train a language model, one document per step: `python train_slimpajama.py --steps 10000`."""

import sys

from trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
