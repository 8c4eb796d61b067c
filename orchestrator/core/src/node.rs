//! The node: what it observes and which steps bring it closer to its assignment.
