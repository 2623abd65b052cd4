"""The workbench: its layout, its actions, its prompts."""
