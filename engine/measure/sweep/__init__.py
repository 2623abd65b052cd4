"""Every layer changed alone: candidates, exact measurement, top-k, agreement."""
