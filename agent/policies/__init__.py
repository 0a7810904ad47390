"""Policies: the engines that a language model runs on, behind one interface."""
