"""One document per step: from a stream of text to a trained model. Each room is a module; `docs/decisions.md` says why."""
