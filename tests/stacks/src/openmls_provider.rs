//! What OpenMLS needs of its surroundings: cryptography, randomness, storage.

use std::sync::RwLock;

use openmls::prelude::OpenMlsProvider;
use openmls_rust_crypto::{MemoryStorage, RustCrypto};

/// RustCrypto with a storage that can be copied: a copy shows the state that a pending commit leads to.
#[derive(Default)]
pub struct Provider {
    pub crypto: RustCrypto,
    pub storage: MemoryStorage,
}

impl OpenMlsProvider for Provider {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = MemoryStorage;

    fn storage(&self) -> &MemoryStorage {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

impl Provider {
    pub fn copy(&self) -> Self {
        let values = self.storage.values.read().expect("no thread panics").clone();
        Provider { crypto: RustCrypto::default(), storage: MemoryStorage { values: RwLock::new(values) } }
    }
}
