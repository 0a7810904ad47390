"""What shapes rollouts beyond plain sampling: experts, demonstrations, hints."""
