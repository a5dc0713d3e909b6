"""Reports people read: sections as data, one page, its text twin. Made in a short-lived child, never in the agent."""
