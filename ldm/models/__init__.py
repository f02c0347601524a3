"""Single-device networks. None of them knows a rank."""
