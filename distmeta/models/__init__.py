"""Floor 3: plain ``nn.Module`` networks; they independent of meta-learning."""
