"""Training: exact masks, the tiny base, SFT and DPO on TRL's trainers, and the measures that go with them."""
