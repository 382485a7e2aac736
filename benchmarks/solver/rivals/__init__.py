"""What tacfast is raced against: other QP solvers, each in its best form, and other ways to the gap matrix."""
