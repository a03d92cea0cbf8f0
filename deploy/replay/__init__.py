"""`minichatgpt replay`: an update done again from what was recorded."""
