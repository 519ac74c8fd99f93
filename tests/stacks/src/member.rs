//! What a member can be asked to do, the same for each MLS library. All octets are whole MLSMessages.

use std::error::Error;

use serde_json::{json, Value};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// RFC 9420 section 8.5: a partition key is MLS-Exporter(LABEL, "", LENGTH) of its epoch.
pub const PARTITION_KEY_LABEL: &str = "mimids partition key";
pub const PARTITION_KEY_LENGTH: usize = 16;

/// What a member is, and how it sends.
#[derive(Clone)]
pub struct Settings {
    /// The content of the basic credential.
    pub identity: String,
    /// The code point of the cipher suite.
    pub suite: u16,
    /// Send handshake messages as PrivateMessages.
    pub encrypted: bool,
    /// Put the ratchet_tree extension into Welcomes and GroupInfos.
    pub tree: bool,
    /// Use GREASE values (RFC 9420 section 13.5): OpenMLS in capabilities, mls-rs also as extensions of leaf nodes,
    /// KeyPackages and GroupInfos. OpenMLS refuses leaf nodes with such extensions.
    pub grease: bool,
    /// List all cipher suites of the library in capabilities; else only the one in use, without which OpenMLS adds
    /// nobody.
    pub lists_suites: bool,
    /// List the last_resort extension in capabilities. Not all clients do; OpenMLS adds only those that do.
    pub lists_last_resort: bool,
}

/// A change of the group: a proposal of its own, or one that a commit covers by value.
pub enum Change {
    Add(Vec<u8>),
    Update,
    Remove(u32),
    /// The id of an external PSK.
    Psk(Vec<u8>),
    SelfRemove,
    /// A component's new data, or None to remove it.
    AppData(u16, Option<Vec<u8>>),
}

pub struct KeyPackage {
    pub message: Vec<u8>,
    pub reference: Vec<u8>,
}

/// A group as a member sees it in one epoch.
#[derive(Clone)]
pub struct State {
    pub group_id: Vec<u8>,
    pub epoch: u64,
    pub partition_key: Vec<u8>,
    pub tree_hash: Vec<u8>,
    pub confirmed_transcript_hash: Vec<u8>,
    /// Leaf index and identity of each member.
    pub members: Vec<(u32, String)>,
}

impl State {
    pub fn json(&self) -> Value {
        let members: Vec<Value> =
            self.members.iter().map(|(leaf, identity)| json!({"leaf": leaf, "identity": identity})).collect();
        json!({
            "epoch": self.epoch,
            "partition_key": hex::encode(&self.partition_key),
            "tree_hash": hex::encode(&self.tree_hash),
            "confirmed_transcript_hash": hex::encode(&self.confirmed_transcript_hash),
            "members": members,
        })
    }
}

/// A commit that was made, and the state that it leads to.
pub struct Commit {
    pub message: Vec<u8>,
    pub welcome: Option<Vec<u8>>,
    /// A GroupInfo of the next epoch, which lets others join by an external commit.
    pub group_info: Option<Vec<u8>>,
    /// The tree of the next epoch, where Welcome and GroupInfo do not have it.
    pub ratchet_tree: Option<Vec<u8>>,
    pub next: State,
}

/// What became of a message that was received.
pub enum Processed {
    Application {
        sender: u32,
        data: Vec<u8>,
    },
    Proposal,
    /// The commit is applied. `active` is false if it removed this member, which then forgets the group.
    Commit {
        active: bool,
    },
    /// The member sent it itself.
    Own,
}

/// One client, which may be a member of many groups.
pub trait Member {
    fn key_package(&mut self, last_resort: bool) -> Result<KeyPackage>;
    fn store_psk(&mut self, id: &[u8], value: &[u8]) -> Result<()>;
    /// Create a group. `external_senders` has signature keys with their identities.
    fn create(&mut self, group_id: &[u8], external_senders: &[(Vec<u8>, String)]) -> Result<()>;
    /// Join by a Welcome; return the group's id.
    fn join(&mut self, welcome: &[u8], tree: Option<&[u8]>) -> Result<Vec<u8>>;
    /// Make an external commit, which also removes the leaf that this member has in the group already. The member is
    /// in the group's next epoch at once; `forget` if the commit is refused.
    fn join_external(&mut self, info: &[u8], tree: Option<&[u8]>, psks: &[Vec<u8>]) -> Result<Commit>;
    /// Make an external proposal that asks to be added.
    fn propose_join(&mut self, info: &[u8], tree: Option<&[u8]>) -> Result<Vec<u8>>;
    fn propose(&mut self, group_id: &[u8], change: Change) -> Result<Vec<u8>>;
    /// Make a commit of these changes and of all proposals that were received. It is pending until `merge` or
    /// `discard`.
    fn commit(&mut self, group_id: &[u8], changes: Vec<Change>) -> Result<Commit>;
    fn merge(&mut self, group_id: &[u8]) -> Result<()>;
    fn discard(&mut self, group_id: &[u8]) -> Result<()>;
    fn forget(&mut self, group_id: &[u8]) -> Result<()>;
    fn process(&mut self, group_id: &[u8], message: &[u8]) -> Result<Processed>;
    fn encrypt(&mut self, group_id: &[u8], data: &[u8]) -> Result<Vec<u8>>;
    fn export(&self, group_id: &[u8], label: &str, context: &[u8], length: usize) -> Result<Vec<u8>>;
    fn state(&self, group_id: &[u8]) -> Result<State>;
    fn group_info(&mut self, group_id: &[u8], tree: bool) -> Result<Vec<u8>>;
    /// The ratchet tree as the extension of this name holds it.
    fn ratchet_tree(&self, group_id: &[u8]) -> Result<Vec<u8>>;
}

/// Return a new member that uses the library of this name.
pub fn new(stack: &str, settings: Settings) -> Result<Box<dyn Member>> {
    match stack {
        "mls-rs" => crate::mls_rs_member::new(settings),
        "openmls" => crate::openmls_member::new(settings),
        _ => Err(format!("no such library: {stack}").into()),
    }
}
