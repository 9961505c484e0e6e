"""Residual networks that add, multiply or gate their two feature maps, and instruments to tell why they differ."""
