"""Block hashing, Merkle trees and signatures."""
