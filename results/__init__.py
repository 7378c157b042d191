"""Tables, figures and the ledger, drawn from records alone: nothing here may import torch or transformers."""
