"""Games: a world model of a gymnasium environment, and an agent that is trained inside it."""
