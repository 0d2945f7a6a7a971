"""Transformers and timm are in the environment of `make zoo` only."""

collect_ignore = ["architectures.py", "families.py", "torchvision_schemas.py"]
