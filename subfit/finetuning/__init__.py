"""Fine-tuning of all bypasses together by gradients, as a LightningModule and a LightningDataModule."""
