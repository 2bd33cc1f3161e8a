"""Models and data that mgit.toml names: adapters, tokenisers, readers."""
