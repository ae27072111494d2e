"""Named bounds on everything that untrusted input can ask for, each with its reason."""

from __future__ import annotations

from typing import Final

# --- seal and image records ---
MAX_SEAL_RECORD: Final = 256 << 20
"""Bytes of a seal record. A chunk map of 16 million chunks of differing lengths stays far below this."""
MAX_IMAGE_RECORD: Final = 16 << 20
"""Bytes of an image record: signatures with chains are a few KiB each; type 22 needs about 0.5 KiB a data blob."""
MAX_RECORD_ENTRIES: Final = 65_535 + 1024
"""Entries of a record: one of type 22 for each data blob, and room for signatures and envelopes."""
MAX_SIGNATURE: Final = 64 << 10
"""Bytes of one signature with its certificate chain: a chain of ten RSA-4096 certificates fits."""
MAX_CHUNKS: Final = 1 << 28
"""Chunks that one chunk map may describe: 16 TiB, all that 32-bit block addresses reach, at 64 KiB."""
MAX_NAME: Final = 255
"""Bytes of an image name in a statement, as for file names."""

# --- blobs ---
MAX_DATA_SIZE: Final = 1 << 60
"""Bytes of a data region: 2^48 blocks of 4096, the widest address EROFS has."""
MAX_SALT: Final = 32
"""Bytes of salt: `struct fsverity_descriptor` has room for 32."""
MAX_DEVICES: Final = 65_535
"""Data blobs of an image: `extra_devices` has 16 bits."""
MAX_ANNEX: Final = (4 << 20) + 4096
"""Bytes of an annex: an image config of the largest size (MAX_MANIFEST), and its frame."""
MAX_STACK_LAYERS: Final = 127
"""Layers of a stack or of a source image: what container engines allow, and overlayfs mounts (up to 500) can hold."""

# --- EROFS metadata (erofs_fs.h and the kernel's own limits) ---
MAX_SB_EXTSLOTS: Final = 184
"""Superblock extension slots: superblock and slots must end within the first 4096 bytes."""
MAX_NAME_LEN: Final = 255
"""Bytes of a file name: EROFS_NAME_LEN."""
MAX_SYMLINK: Final = 4095
"""Bytes of a symlink's target that we write: PATH_MAX less the NUL."""
MAX_SYMLINK_READ: Final = 65_536
"""Bytes of a symlink's target that we accept when reading."""
MAX_XATTR_VALUE: Final = 65_535
"""Bytes of an xattr value: e_value_size has 16 bits."""
MAX_XATTR_AREA: Final = 12 + 4 * (65_535 - 1)
"""Bytes of an inode's inline xattr area: i_xattr_icount has 16 bits."""
MAX_XATTR_PREFIXES: Final = 128
"""Long prefixes: indexes 0x80 to 0xff."""
MAX_DIRECTORY: Final = 4 << 30
"""Bytes of one directory's data that we walk: about 100 million entries."""
MAX_DEPTH: Final = 4096
"""Levels of directories: deeper trees cannot be named by PATH_MAX and mean a cycle."""
MAX_INODES: Final = 1 << 28
"""Inodes that a walk visits before it gives up."""
MAX_CHUNK_BITS: Final = 31
"""Largest cb of a chunk format: chunk size is block size << cb."""

# --- memory ---
TREE_CACHE_BLOCKS: Final = 1024
"""Verified tree blocks kept by a reader of one blob: 4 MiB cover 512 MiB of data."""
IO_CHUNK: Final = 1 << 20
"""Bytes read or hashed in one go on streaming paths."""
MAX_OPEN_BLOBS: Final = 256
"""Data blobs kept open at once: well below the usual limit of 1,024 descriptors."""

# --- signatures, keys and policies ---
MAX_STATEMENT: Final = 512
"""Bytes of an image statement: the longest digest (147), the longest name (255) and fixed fields make 439."""
MAX_IMAGE_SIGNATURES: Final = 64
"""Signatures of one image that are tried: each may cost a path search, so a record must not hold thousands."""
MAX_CERTIFICATES: Final = 16
"""Certificates in one signature or chain file: twice the longest path."""
MAX_PATH_DEPTH: Final = 8
"""Intermediates between a signer's certificate and a CA: real hierarchies have one to three."""
MIN_RSA_BITS: Final = 2048
"""Smallest RSA modulus: what NIST SP 800-57 asks for since 2014."""
MAX_RSA_BITS: Final = 16_384
"""Largest RSA modulus: OpenSSL's own bound; verification time grows with it."""
MAX_KEY_FILE: Final = 1 << 20
"""Bytes of a key or certificate file: real ones have a few KiB."""
MAX_POLICY_FILE: Final = 1 << 20
"""Bytes of a policy file: thousands of tables."""
MAX_REFUSALS: Final = 8
"""Reasons that one refusal lists: more than anybody reads, and the record's author chooses how many there are."""

# --- finding and scanning ---
FOOTER_SEARCH: Final = 1 << 20
"""Bytes before a file's end that are searched for a footer: a trailing chunk index of 20,000 chunks lies before it."""
MAX_BAD_BLOCKS: Final = 65_536
"""Bad blocks that a scan lists before it stops: a blob of garbage must not fill memory."""

# --- lists of rules by path ---
MAX_RULES_FILE: Final = 64 << 20
"""Bytes of a list of owners or SELinux contexts: a hundred times the largest policy of a distribution."""

# --- archives ---
MAX_ARCHIVE_ENTRIES: Final = 1 << 22
"""Entries of one tar archive: 35 times /usr of a distribution; each costs memory, and compresses to nothing."""
MAX_ARCHIVE_BYTES: Final = 1 << 44
"""Bytes of content, holes counted, of one tar archive: all that 32-bit block addresses reach."""
MAX_ARCHIVE_FILE: Final = 1 << 40
"""Bytes of one file in an archive: a sparse one costs memory for each chunk without having sent a byte of it."""
MAX_ARCHIVE_HOLES: Final = 1 << 40
"""Bytes of holes in all archives of a build: nobody sent them, and each chunk of them costs memory and metadata."""
MAX_TAR_EXTENSION: Final = 4 << 20
"""Bytes of one PAX header, long name or sparse map: 65,535 bytes an xattr, and dozens of them, fit."""
MAX_SPARSE_PIECES: Final = 1 << 18
"""Data pieces of one sparse file: a map of that many has megabytes."""
MAX_ARCHIVE_METADATA: Final = 512 << 20
"""Bytes of paths, link targets and xattrs that one archive may leave in memory: fifty times those of /usr."""
MAX_ARCHIVE_PATH: Final = 16 << 10
"""Bytes of one path: four times what a system call takes, and room for the deepest tree."""
MAX_ARCHIVE_IMPLICIT: Final = 1 << 20
"""Directories of an archive that no entry describes: a path makes thousands of them, which nobody sent."""
MAX_ARCHIVE_TRAILER: Final = 64 << 20
"""Bytes behind the end of an archive: it is padded to a record, which no tape drive has longer."""
MAX_DECODER_MEMORY: Final = 128 << 20
"""Bytes of a decoder's window: what `zstd --ultra -22` and `--long` need, and twice what `xz -9` does."""

# --- many images ---
MAX_IMAGE_LIST: Final = 16 << 20
"""Bytes of a list of images to build: a hundred times what anybody writes, and held in memory a few times."""
MAX_LISTED_IMAGES: Final = 10_000
"""Images of one list: the report on all of them is written again after each one."""
MAX_MANY_REPORT: Final = 256 << 20
"""Bytes of such a report: the longest list, each byte as a JSON escape, and the longest errors fit."""

# --- containers and stores ---
MAX_MANIFEST: Final = 4 << 20
"""Bytes of a manifest, index or image config: what registries take (distribution specification)."""
MAX_TAGS: Final = 100_000
"""Tags that are listed of one repository, and objects of `index.json`."""
MAX_IN_FLIGHT: Final = 32 << 20
"""Bytes that transfers of one process hold at once: 16 requests of 2 MiB. A gigabyte is pulled in 120 MiB of memory."""
MAX_READ: Final = 4 << 20
"""Bytes of the largest request for a part of a blob: beyond, its latency is hidden, and a cut only costs more."""
MIN_READ: Final = 64 << 10
"""Bytes of the smallest request that a large blob is cut into: below, the requests cost more than the bytes."""
MAX_TRANSFER_BLOB: Final = 1 << 45
"""Bytes of a blob that is fetched in pieces: twice what 32-bit block addresses reach; its map has 32 MiB."""
MAX_JSON_BODY: Final = 16 << 20
"""Bytes of any other JSON answer of a server: a page of tags, a token."""
MAX_REFERRERS: Final = 1024
"""Image records of one manifest that are looked at: registries that delete nothing keep each that ever was."""
MAX_CHUNK_INDEX: Final = 64 << 20
"""Bytes of a chunk index: 1.4 million chunks with their SHA-256, more than a TiB at 1 MiB each."""
MAX_LAYER_CHUNK: Final = 16 << 20
"""Bytes of one chunk of a chunk index, uncompressed: ours have 1 MiB, and a reader holds several."""
MAX_WRITE_CONFLICTS: Final = 64
"""Times that a document or record is read again because another writer came between: as many writers at once."""
MAX_CREDENTIALS_FILE: Final = 4 << 20
"""Bytes of a file of credentials, or of what a helper says: thousands of registries."""
MAX_TOKEN: Final = 64 << 10
"""Characters of a registry's token: those with many rights have a few thousand."""
MAX_UPLOAD_MEMORY: Final = 32 << 20
"""Bytes of parts on their way up that a process holds: four of 8 MiB keep 1 Gbit/s busy over 200 ms."""
MAX_UPLOAD_PART: Final = 32 << 20
"""Bytes of one part of an upload: object stores take 10,000 of them, so objects may have 312 GiB."""
MAX_SAVED_MEMBERS: Final = 1 << 14
"""Members of a saved image's outer archive: four for each layer, and some dozens of images in one archive."""

# --- collections ---
MAX_LEASED: Final = 4096
"""Blobs that a lease lists; one for more keeps all blobs, which costs nothing but the wait of a collection."""
MAX_LEASE_DOCUMENT: Final = 1 << 20
"""Bytes of a lease: 4,096 SHA-512 digests take 610 KiB."""
MAX_LEASE_SECONDS: Final = 24 * 3600
"""Seconds that a lease lasts at most without being renewed: what a killed writer leaves is dead a day later."""
MAX_LEASES: Final = 4096
"""Leases of one store that are read: as many writers at once."""
