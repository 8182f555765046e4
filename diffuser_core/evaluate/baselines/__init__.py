"""What the planner is compared with: the scripted demonstrator and policies learned from the same demonstrations."""
