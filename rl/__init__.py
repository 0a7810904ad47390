"""The learning side: rewards, credit, packing, DeepSpeed updates."""
