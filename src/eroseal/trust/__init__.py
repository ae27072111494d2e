"""The verifier, the policy, and the types that only the verifier constructs."""
