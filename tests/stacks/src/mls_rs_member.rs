//! A member that uses mls-rs.

use std::collections::HashMap;

use mls_rs::client_builder::MlsConfig;
use mls_rs::error::MlsError;
use mls_rs::extension::built_in::ExternalSendersExt;
use mls_rs::extension::recommended::LastResortKeyPackageExt;
use mls_rs::group::{CommitEffect, ExportedTree, Group, ReceivedMessage};
use mls_rs::identity::basic::{BasicCredential, BasicIdentityProvider};
use mls_rs::identity::SigningIdentity;
use mls_rs::mls_rules::{CommitOptions, DefaultMlsRules, EncryptionOptions};
use mls_rs::psk::{ExternalPskId, PreSharedKey};
use mls_rs::storage_provider::in_memory::{InMemoryGroupStateStorage, InMemoryPreSharedKeyStorage};
use mls_rs::{CipherSuite, CipherSuiteProvider, Client, CryptoProvider, Extension, ExtensionList, MlsMessage};
use mls_rs_core::extension::ExtensionType;
use mls_rs_core::group::ProposalType;
use mls_rs_crypto_rustcrypto::RustCryptoProvider;

use crate::member::{
    Change, Commit, KeyPackage, Member, Processed, Result, Settings, State, PARTITION_KEY_LABEL, PARTITION_KEY_LENGTH,
};

struct MlsRsMember<C: MlsConfig> {
    client: Client<C>,
    suite: CipherSuite,
    psks: InMemoryPreSharedKeyStorage,
    storage: InMemoryGroupStateStorage,
    groups: HashMap<Vec<u8>, Group<C>>,
    tree: bool,
    /// GREASE extensions, if the member uses them.
    grease: ExtensionList,
}

/// mls-rs has a feature for GREASE, but that cannot be chosen at run time.
const GREASE: u16 = 0x2A2A;

pub fn new(settings: Settings) -> Result<Box<dyn Member>> {
    let suite = CipherSuite::from(settings.suite);
    let all = RustCryptoProvider::new();
    let crypto = if settings.lists_suites { all } else { RustCryptoProvider::with_enabled_cipher_suites(vec![suite]) };
    let provider = crypto.cipher_suite_provider(suite).ok_or("mls-rs does not support the suite")?;
    let (secret, public) = provider.signature_key_generate()?;
    let credential = BasicCredential::new(settings.identity.into_bytes()).into_credential();
    let storage = InMemoryGroupStateStorage::default();
    let psks = InMemoryPreSharedKeyStorage::default();
    let commits = CommitOptions::new()
        .with_path_required(false)
        .with_ratchet_tree_extension(settings.tree)
        .with_allow_external_commit(true);
    let encryption = EncryptionOptions::new(settings.encrypted, Default::default());
    let mut extensions = Vec::new();
    let mut proposals = vec![ProposalType::SELF_REMOVE];
    let mut grease = ExtensionList::new();
    if settings.lists_last_resort {
        extensions.push(ExtensionType::LAST_RESORT_KEY_PACKAGE);
    }
    if settings.grease {
        extensions.push(GREASE.into());
        proposals.push(GREASE.into());
        grease.set(Extension::new(GREASE.into(), vec![]));
    }
    let client = Client::builder()
        .extension_types(extensions)
        .identity_provider(BasicIdentityProvider)
        .crypto_provider(crypto)
        .psk_store(psks.clone())
        .group_state_storage(storage.clone())
        .mls_rules(DefaultMlsRules::new().with_commit_options(commits).with_encryption_options(encryption))
        .custom_proposal_types(proposals)
        .signing_identity(SigningIdentity::new(credential, public), secret, suite)
        .build();
    Ok(Box::new(MlsRsMember { client, suite, psks, storage, groups: HashMap::new(), tree: settings.tree, grease }))
}

impl<C: MlsConfig> MlsRsMember<C> {
    fn group(&self, group_id: &[u8]) -> Result<&Group<C>> {
        Ok(self.groups.get(group_id).ok_or("no such group")?)
    }

    fn group_mut(&mut self, group_id: &[u8]) -> Result<&mut Group<C>> {
        Ok(self.groups.get_mut(group_id).ok_or("no such group")?)
    }

    /// Store a group that the member has just entered. mls-rs cannot add to stored epochs of an earlier membership.
    fn keep(&mut self, mut group: Group<C>) -> Result<()> {
        self.storage.delete_group(group.group_id());
        group.write_to_storage()?;
        self.groups.insert(group.group_id().to_vec(), group);
        Ok(())
    }
}

impl<C: MlsConfig> Member for MlsRsMember<C> {
    fn key_package(&mut self, last_resort: bool) -> Result<KeyPackage> {
        let mut extensions = self.grease.clone();
        if last_resort {
            extensions.set_from(LastResortKeyPackageExt)?;
        }
        let message = self.client.generate_key_package_message(extensions, self.grease.clone(), None)?;
        let provider = RustCryptoProvider::new().cipher_suite_provider(self.suite).ok_or("no such suite")?;
        let reference = message.key_package_reference(&provider)?.ok_or("not a KeyPackage")?;
        Ok(KeyPackage { message: message.to_bytes()?, reference: reference.to_vec() })
    }

    fn store_psk(&mut self, id: &[u8], value: &[u8]) -> Result<()> {
        self.psks.insert(ExternalPskId::new(id.to_vec()), PreSharedKey::new(value.to_vec()));
        Ok(())
    }

    fn create(&mut self, group_id: &[u8], external_senders: &[(Vec<u8>, String)]) -> Result<()> {
        let mut extensions = ExtensionList::new();
        if !external_senders.is_empty() {
            let senders = external_senders.iter().map(|(key, identity)| {
                let credential = BasicCredential::new(identity.clone().into_bytes()).into_credential();
                SigningIdentity::new(credential, key.clone().into())
            });
            extensions.set_from(ExternalSendersExt::new(senders.collect()))?;
        }
        let group = self.client.create_group_with_id(group_id.to_vec(), extensions, self.grease.clone(), None)?;
        self.keep(group)
    }

    fn join(&mut self, welcome: &[u8], tree: Option<&[u8]>) -> Result<Vec<u8>> {
        let tree = tree.map(ExportedTree::from_bytes).transpose()?;
        let (group, _) = self.client.join_group(tree, &MlsMessage::from_bytes(welcome)?, None)?;
        let group_id = group.group_id().to_vec();
        self.keep(group)?;
        Ok(group_id)
    }

    fn join_external(&mut self, info: &[u8], tree: Option<&[u8]>, psks: &[Vec<u8>]) -> Result<Commit> {
        let message = MlsMessage::from_bytes(info)?;
        let mut builder = self.client.external_commit_builder()?.with_leaf_node_extensions(self.grease.clone());
        if let Some(group) = message.group_id().and_then(|group_id| self.groups.get(group_id)) {
            builder = builder.with_removal(group.current_member_index());
        }
        if let Some(tree) = tree {
            builder = builder.with_tree_data(ExportedTree::from_bytes(tree)?);
        }
        for psk in psks {
            builder = builder.with_external_psk(ExternalPskId::new(psk.clone()));
        }
        let (group, commit) = builder.build(message)?;
        let next = state(&group)?;
        let commit = Commit {
            message: commit.to_bytes()?,
            welcome: None,
            group_info: Some(group_info(&group, self.tree, &self.grease)?),
            ratchet_tree: if self.tree { None } else { Some(group.export_tree().to_bytes()?) },
            next,
        };
        self.keep(group)?;
        Ok(commit)
    }

    fn propose_join(&mut self, info: &[u8], tree: Option<&[u8]>) -> Result<Vec<u8>> {
        let tree = tree.map(ExportedTree::from_bytes).transpose()?;
        let info = MlsMessage::from_bytes(info)?;
        let grease = || self.grease.clone();
        Ok(self.client.external_add_proposal(&info, tree, vec![], grease(), grease(), None)?.to_bytes()?)
    }

    fn propose(&mut self, group_id: &[u8], change: Change) -> Result<Vec<u8>> {
        let group = self.group_mut(group_id)?;
        let message = match change {
            Change::Add(key_package) => group.propose_add(MlsMessage::from_bytes(&key_package)?, vec![])?,
            Change::Update => group.propose_update(vec![])?,
            Change::Remove(leaf) => group.propose_remove(leaf, vec![])?,
            Change::Psk(id) => group.propose_external_psk(ExternalPskId::new(id), vec![])?,
            Change::SelfRemove => group.propose_self_remove(vec![])?,
            Change::AppData(..) => return Err("mls-rs has no AppDataUpdate".into()),
        };
        group.write_to_storage()?;
        Ok(message.to_bytes()?)
    }

    fn commit(&mut self, group_id: &[u8], changes: Vec<Change>) -> Result<Commit> {
        let (tree, grease) = (self.tree, self.grease.clone());
        let group = self.group_mut(group_id)?;
        let mut builder = group.commit_builder();
        for change in changes {
            builder = match change {
                Change::Add(key_package) => builder.add_member(MlsMessage::from_bytes(&key_package)?)?,
                Change::Remove(leaf) => builder.remove_member(leaf)?,
                Change::Psk(id) => builder.add_external_psk(ExternalPskId::new(id))?,
                Change::Update => builder, // a commit without proposals has a path
                Change::SelfRemove => return Err("a SelfRemove is covered only by reference".into()),
                Change::AppData(..) => return Err("mls-rs has no AppDataUpdate".into()),
            };
        }
        let made = builder.build()?;
        let mut next = group.clone();
        next.apply_pending_commit()?;
        Ok(Commit {
            message: made.commit_message.to_bytes()?,
            welcome: made.welcome_messages.first().map(MlsMessage::to_bytes).transpose()?,
            group_info: Some(group_info(&next, tree, &grease)?),
            ratchet_tree: if tree { None } else { Some(next.export_tree().to_bytes()?) },
            next: state(&next)?,
        })
    }

    fn merge(&mut self, group_id: &[u8]) -> Result<()> {
        let group = self.group_mut(group_id)?;
        group.apply_pending_commit()?;
        Ok(group.write_to_storage()?)
    }

    fn discard(&mut self, group_id: &[u8]) -> Result<()> {
        self.group_mut(group_id)?.clear_pending_commit();
        Ok(())
    }

    fn forget(&mut self, group_id: &[u8]) -> Result<()> {
        self.groups.remove(group_id).ok_or("no such group")?;
        self.storage.delete_group(group_id);
        Ok(())
    }

    fn process(&mut self, group_id: &[u8], message: &[u8]) -> Result<Processed> {
        let group = self.group_mut(group_id)?;
        let processed = match group.process_incoming_message(MlsMessage::from_bytes(message)?) {
            Ok(ReceivedMessage::ApplicationMessage(found)) => {
                Processed::Application { sender: found.sender_index, data: found.data().to_vec() }
            }
            Ok(ReceivedMessage::Commit(found)) if matches!(found.effect, CommitEffect::Removed { .. }) => {
                self.forget(group_id)?;
                return Ok(Processed::Commit { active: false });
            }
            Ok(ReceivedMessage::Commit(_)) => Processed::Commit { active: true },
            Ok(ReceivedMessage::Proposal(_)) => Processed::Proposal,
            Ok(_) => return Err("not a message to the group".into()),
            Err(MlsError::CantProcessMessageFromSelf) => Processed::Own,
            Err(error) => return Err(error.into()),
        };
        group.write_to_storage()?;
        Ok(processed)
    }

    fn encrypt(&mut self, group_id: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        let group = self.group_mut(group_id)?;
        let message = group.encrypt_application_message(data, vec![])?;
        group.write_to_storage()?;
        Ok(message.to_bytes()?)
    }

    fn export(&self, group_id: &[u8], label: &str, context: &[u8], length: usize) -> Result<Vec<u8>> {
        Ok(self.group(group_id)?.export_secret(label.as_bytes(), context, length)?.as_bytes().to_vec())
    }

    fn state(&self, group_id: &[u8]) -> Result<State> {
        state(self.group(group_id)?)
    }

    fn group_info(&mut self, group_id: &[u8], tree: bool) -> Result<Vec<u8>> {
        group_info(self.group(group_id)?, tree, &self.grease)
    }

    fn ratchet_tree(&self, group_id: &[u8]) -> Result<Vec<u8>> {
        Ok(self.group(group_id)?.export_tree().to_bytes()?)
    }
}

fn group_info<C: MlsConfig>(group: &Group<C>, tree: bool, grease: &ExtensionList) -> Result<Vec<u8>> {
    Ok(group.group_info_message_allowing_ext_commit_with_extensions(tree, grease.clone())?.to_bytes()?)
}

fn state<C: MlsConfig>(group: &Group<C>) -> Result<State> {
    let context = group.context();
    let members = group.roster().members().into_iter().map(|member| {
        let credential = member.signing_identity.credential.as_basic().ok_or("not a basic credential")?;
        Ok((member.index, String::from_utf8(credential.identifier.clone())?))
    });
    Ok(State {
        group_id: context.group_id.clone(),
        epoch: context.epoch,
        partition_key: group
            .export_secret(PARTITION_KEY_LABEL.as_bytes(), b"", PARTITION_KEY_LENGTH)?
            .as_bytes()
            .to_vec(),
        tree_hash: context.tree_hash.clone(),
        confirmed_transcript_hash: context.confirmed_transcript_hash.to_vec(),
        members: members.collect::<Result<_>>()?,
    })
}
