"""The commands of the command line, one file a subject. Everything heavy is imported when a command runs."""
