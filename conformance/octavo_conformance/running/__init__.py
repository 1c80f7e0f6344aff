"""Running cases: in this process (`execute`), and in processes of their own, where a crash or a hang is one case's."""
