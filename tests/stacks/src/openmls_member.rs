//! A member that uses OpenMLS.

use std::collections::HashMap;

use openmls::component::ComponentData;
use openmls::messages::group_info::VerifiableGroupInfo;
use openmls::prelude::tls_codec::{Deserialize, Serialize};
use openmls::prelude::*;
use openmls::schedule::{ExternalPsk, PreSharedKeyId, Psk};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::MemoryStorage;

use crate::member::{
    Change, Commit, KeyPackage, Member, Processed, Result, Settings, State, PARTITION_KEY_LABEL, PARTITION_KEY_LENGTH,
};
use crate::openmls_provider::Provider;

const PAST_EPOCHS: usize = 8; // messages of so many past epochs can still be decrypted

struct OpenMlsMember {
    provider: Provider,
    signer: SignatureKeyPair,
    credential: CredentialWithKey,
    suite: Ciphersuite,
    config: MlsGroupJoinConfig,
    capabilities: Capabilities,
    groups: HashMap<Vec<u8>, MlsGroup>,
    tree: bool,
}

pub fn new(settings: Settings) -> Result<Box<dyn Member>> {
    let suite = Ciphersuite::try_from(settings.suite)?;
    let provider = Provider::default();
    provider.crypto.supports(suite)?;
    let signer = SignatureKeyPair::new(suite.signature_algorithm())?;
    signer.store(&provider.storage)?;
    let credential = CredentialWithKey {
        credential: BasicCredential::new(settings.identity.into_bytes()).into(),
        signature_key: signer.to_public_vec().into(),
    };
    let suites = if settings.lists_suites { provider.crypto.supported_ciphersuites() } else { vec![suite] };
    let mut extensions = vec![ExtensionType::AppDataDictionary];
    if settings.lists_last_resort {
        extensions.push(ExtensionType::LastResort);
    }
    let mut capabilities = Capabilities::builder()
        .ciphersuites(suites)
        .proposals(vec![ProposalType::SelfRemove, ProposalType::AppDataUpdate])
        .extensions(extensions)
        .build();
    if settings.grease {
        capabilities = capabilities.with_grease(&provider.crypto);
    }
    let policy =
        if settings.encrypted { MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY } else { MIXED_PLAINTEXT_WIRE_FORMAT_POLICY };
    let config = configuration(policy, settings.tree);
    let groups = HashMap::new();
    Ok(Box::new(OpenMlsMember {
        provider,
        signer,
        credential,
        suite,
        config,
        capabilities,
        groups,
        tree: settings.tree,
    }))
}

fn configuration(policy: WireFormatPolicy, tree: bool) -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(policy)
        .use_ratchet_tree_extension(tree)
        .max_past_epochs(PAST_EPOCHS)
        .build()
}

/// Return one of the member's groups. It borrows only `groups`, so that the other fields stay free.
fn group_of<'a>(groups: &'a mut HashMap<Vec<u8>, MlsGroup>, group_id: &[u8]) -> Result<&'a mut MlsGroup> {
    Ok(groups.get_mut(group_id).ok_or("no such group")?)
}

fn parse_key_package(provider: &Provider, message: &[u8]) -> Result<openmls::prelude::KeyPackage> {
    match MlsMessageIn::tls_deserialize_exact(message)?.extract() {
        MlsMessageBodyIn::KeyPackage(package) => Ok(package.validate(&provider.crypto, ProtocolVersion::Mls10)?),
        _ => Err("not a KeyPackage".into()),
    }
}

fn parse_group_info(message: &[u8]) -> Result<VerifiableGroupInfo> {
    match MlsMessageIn::tls_deserialize_exact(message)?.extract() {
        MlsMessageBodyIn::GroupInfo(info) => Ok(info),
        _ => Err("not a GroupInfo".into()),
    }
}

impl OpenMlsMember {
    fn group(&self, group_id: &[u8]) -> Result<&MlsGroup> {
        Ok(self.groups.get(group_id).ok_or("no such group")?)
    }

    fn external_psk(&self, id: Vec<u8>) -> Result<PreSharedKeyId> {
        Ok(PreSharedKeyId::new(self.suite, &self.provider.crypto, Psk::External(ExternalPsk::new(id)))?)
    }

    /// Return what the commit leads to, from a copy of the group that has merged it.
    fn commit_made(
        &self,
        group: &mut MlsGroup,
        provider: &Provider,
        message: Vec<u8>,
        welcome: Option<Vec<u8>>,
    ) -> Result<Commit> {
        if group.pending_commit().is_some() {
            group.merge_pending_commit(provider)?;
        }
        let info = group.export_group_info(&provider.crypto, &self.signer, self.tree)?;
        let tree = if self.tree { None } else { Some(group.export_ratchet_tree().tls_serialize_detached()?) };
        Ok(Commit {
            message,
            welcome,
            group_info: Some(info.to_bytes()?),
            ratchet_tree: tree,
            next: state(group, provider)?,
        })
    }
}

impl Member for OpenMlsMember {
    fn key_package(&mut self, last_resort: bool) -> Result<KeyPackage> {
        let mut builder = openmls::prelude::KeyPackage::builder().leaf_node_capabilities(self.capabilities.clone());
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let package =
            builder.build(self.suite, &self.provider, &self.signer, self.credential.clone())?.into_key_package();
        let reference = package.hash_ref(&self.provider.crypto)?.as_slice().to_vec();
        Ok(KeyPackage { message: MlsMessageOut::from(package).to_bytes()?, reference })
    }

    fn store_psk(&mut self, id: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.external_psk(id.to_vec())?.store(&self.provider, value)?)
    }

    fn create(&mut self, group_id: &[u8], external_senders: &[(Vec<u8>, String)]) -> Result<()> {
        let mut extensions = Extensions::empty();
        if !external_senders.is_empty() {
            let senders = external_senders.iter().map(|(key, identity)| {
                let credential = BasicCredential::new(identity.clone().into_bytes()).into();
                ExternalSender::new(key.clone().into(), credential)
            });
            extensions.add(Extension::ExternalSenders(senders.collect()))?;
        }
        let group = MlsGroup::builder()
            .with_group_id(GroupId::from_slice(group_id))
            .ciphersuite(self.suite)
            .with_wire_format_policy(self.config.wire_format_policy())
            .use_ratchet_tree_extension(self.tree)
            .max_past_epochs(PAST_EPOCHS)
            .with_capabilities(self.capabilities.clone())
            .with_group_context_extensions(extensions)
            .build(&self.provider, &self.signer, self.credential.clone())?;
        self.groups.insert(group_id.to_vec(), group);
        Ok(())
    }

    fn join(&mut self, welcome: &[u8], tree: Option<&[u8]>) -> Result<Vec<u8>> {
        let MlsMessageBodyIn::Welcome(welcome) = MlsMessageIn::tls_deserialize_exact(welcome)?.extract() else {
            return Err("not a Welcome".into());
        };
        let mut builder = StagedWelcome::build_from_welcome(&self.provider, &self.config, welcome)?.replace_old_group();
        if let Some(tree) = tree {
            builder = builder.with_ratchet_tree(RatchetTreeIn::tls_deserialize_exact(tree)?);
        }
        let group = builder.build()?.into_group(&self.provider)?;
        let group_id = group.group_id().to_vec();
        self.groups.insert(group_id.clone(), group);
        Ok(group_id)
    }

    fn join_external(&mut self, info: &[u8], tree: Option<&[u8]>, psks: &[Vec<u8>]) -> Result<Commit> {
        let info = parse_group_info(info)?;
        let mut builder = MlsGroup::external_commit_builder().with_config(self.config.clone());
        if let Some(tree) = tree {
            builder = builder.with_ratchet_tree(RatchetTreeIn::tls_deserialize_exact(tree)?);
        }
        let psks = psks.iter().map(|id| Ok(PreSharedKeyProposal::new(self.external_psk(id.clone())?)));
        let leaf = LeafNodeParameters::builder().with_capabilities(self.capabilities.clone()).build();
        let (mut group, bundle) = builder
            .build_group(&self.provider, info, self.credential.clone())?
            .add_psk_proposals(psks.collect::<Result<Vec<_>>>()?)
            .leaf_node_parameters(leaf)
            .load_psks(&self.provider.storage)?
            .build(&self.provider.crypto, &self.provider.crypto, &self.signer, |_| true)?
            .finalize(&self.provider)?;
        let commit = self.commit_made(&mut group, &self.provider, bundle.into_commit().to_bytes()?, None)?;
        self.groups.insert(group.group_id().to_vec(), group);
        Ok(commit)
    }

    fn propose_join(&mut self, info: &[u8], _tree: Option<&[u8]>) -> Result<Vec<u8>> {
        let package = self.key_package(false)?;
        let package = parse_key_package(&self.provider, &package.message)?;
        let info = parse_group_info(info)?;
        let (group_id, epoch) = (info.group_id().clone(), info.epoch());
        Ok(JoinProposal::new::<MemoryStorage>(package, group_id, epoch, &self.signer)?.to_bytes()?)
    }

    fn propose(&mut self, group_id: &[u8], change: Change) -> Result<Vec<u8>> {
        let propose = match change {
            Change::Add(package) => Propose::Add(parse_key_package(&self.provider, &package)?),
            Change::Update => Propose::Update(LeafNodeParameters::default()),
            Change::Remove(leaf) => Propose::Remove(leaf),
            Change::Psk(id) => Propose::PreSharedKey(self.external_psk(id)?),
            Change::AppData(component_id, Some(update)) => Propose::UpdateAppDataComponent { component_id, update },
            Change::AppData(component_id, None) => Propose::RemoveAppDataComponent { component_id },
            Change::SelfRemove => {
                // OpenMLS refuses a SelfRemove while handshakes are encrypted, because it is always a PublicMessage.
                let group = group_of(&mut self.groups, group_id)?;
                let usual = group.configuration().clone();
                let plain = configuration(MIXED_PLAINTEXT_WIRE_FORMAT_POLICY, self.tree);
                group.set_configuration(&self.provider.storage, &plain)?;
                let message = group.leave_group_via_self_remove(&self.provider, &self.signer)?;
                group.set_configuration(&self.provider.storage, &usual)?;
                return Ok(message.to_bytes()?);
            }
        };
        let group = group_of(&mut self.groups, group_id)?;
        let (message, _) = group.propose(&self.provider, &self.signer, propose, ProposalOrRefType::Reference)?;
        Ok(message.to_bytes()?)
    }

    fn commit(&mut self, group_id: &[u8], changes: Vec<Change>) -> Result<Commit> {
        let (mut adds, mut removes, mut others, mut update) = (vec![], vec![], vec![], false);
        for change in changes {
            match change {
                Change::Add(package) => adds.push(parse_key_package(&self.provider, &package)?),
                Change::Remove(leaf) => removes.push(LeafNodeIndex::new(leaf)),
                Change::Psk(id) => {
                    let psk = PreSharedKeyProposal::new(self.external_psk(id)?);
                    others.push(Proposal::PreSharedKey(Box::new(psk)));
                }
                Change::AppData(component, data) => others.push(Proposal::AppDataUpdate(Box::new(match data {
                    Some(data) => AppDataUpdateProposal::update(component, data),
                    None => AppDataUpdateProposal::remove(component),
                }))),
                Change::Update => update = true,
                Change::SelfRemove => return Err("a SelfRemove is covered only by reference".into()),
            }
        }
        let group = group_of(&mut self.groups, group_id)?;
        let mut builder = group
            .commit_builder()
            .force_self_update(update)
            .propose_adds(adds)
            .propose_removals(removes)
            .add_proposals(others)
            .load_psks(&self.provider.storage)?;
        let updates = app_data_updates(builder.app_data_dictionary_updater(), builder.app_data_update_proposals());
        builder.with_app_data_dictionary_updates(updates);
        let bundle = builder
            .build(&self.provider.crypto, &self.provider.crypto, &self.signer, |_| true)?
            .stage_commit(&self.provider)?;
        let (message, welcome, _) = bundle.into_messages();
        let copy = self.provider.copy();
        let mut next = MlsGroup::load(&copy.storage, &GroupId::from_slice(group_id))?.ok_or("no such group")?;
        let welcome = welcome.map(|welcome| welcome.to_bytes()).transpose()?;
        self.commit_made(&mut next, &copy, message.to_bytes()?, welcome)
    }

    fn merge(&mut self, group_id: &[u8]) -> Result<()> {
        Ok(group_of(&mut self.groups, group_id)?.merge_pending_commit(&self.provider)?)
    }

    fn discard(&mut self, group_id: &[u8]) -> Result<()> {
        Ok(group_of(&mut self.groups, group_id)?.clear_pending_commit(&self.provider.storage)?)
    }

    fn forget(&mut self, group_id: &[u8]) -> Result<()> {
        let mut group = self.groups.remove(group_id).ok_or("no such group")?;
        Ok(group.delete(&self.provider.storage)?)
    }

    fn process(&mut self, group_id: &[u8], message: &[u8]) -> Result<Processed> {
        let provider = &self.provider;
        let group = group_of(&mut self.groups, group_id)?;
        let message = MlsMessageIn::tls_deserialize_exact(message)?.try_into_protocol_message()?;
        let processed = group.process_message(provider, message)?;
        let sender = match processed.sender() {
            Sender::Member(leaf) => leaf.u32(),
            _ => u32::MAX,
        };
        let staged = match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(found) => {
                return Ok(Processed::Application { sender, data: found.into_bytes() })
            }
            ProcessedMessageContent::ProposalMessage(found)
            | ProcessedMessageContent::ExternalJoinProposalMessage(found) => {
                group.store_pending_proposal(&provider.storage, *found)?;
                return Ok(Processed::Proposal);
            }
            ProcessedMessageContent::OwnPendingCommit => {
                group.merge_pending_commit(provider)?;
                return Ok(Processed::Commit { active: group.is_active() });
            }
            ProcessedMessageContent::OwnPrivateMessage => return Ok(Processed::Own),
            ProcessedMessageContent::UnresolvedAppDataCommit(commit) => {
                let updates = app_data_updates(group.app_data_dictionary_updater(), commit.app_data_update_proposals());
                group.stage_app_data_commit(provider, *commit, updates)?
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => *commit,
        };
        group.merge_staged_commit(provider, staged)?;
        let active = group.is_active();
        if !active {
            self.forget(group_id)?;
        }
        Ok(Processed::Commit { active })
    }

    fn encrypt(&mut self, group_id: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        let group = group_of(&mut self.groups, group_id)?;
        Ok(group.create_message(&self.provider, &self.signer, data)?.to_bytes()?)
    }

    fn export(&self, group_id: &[u8], label: &str, context: &[u8], length: usize) -> Result<Vec<u8>> {
        Ok(self.group(group_id)?.export_secret(&self.provider.crypto, label, context, length)?)
    }

    fn state(&self, group_id: &[u8]) -> Result<State> {
        state(self.group(group_id)?, &self.provider)
    }

    fn group_info(&mut self, group_id: &[u8], tree: bool) -> Result<Vec<u8>> {
        Ok(self.group(group_id)?.export_group_info(&self.provider.crypto, &self.signer, tree)?.to_bytes()?)
    }

    fn ratchet_tree(&self, group_id: &[u8]) -> Result<Vec<u8>> {
        Ok(self.group(group_id)?.export_ratchet_tree().tls_serialize_detached()?)
    }
}

/// Apply AppDataUpdates: an update replaces the component's data.
fn app_data_updates<'a>(
    mut updater: AppDataDictionaryUpdater<'_>,
    proposals: impl Iterator<Item = &'a AppDataUpdateProposal>,
) -> Option<AppDataUpdates> {
    for proposal in proposals {
        match proposal.operation() {
            AppDataUpdateOperation::Update(data) => {
                updater.set(ComponentData::from_parts(proposal.component_id(), data.clone()))
            }
            AppDataUpdateOperation::Remove => updater.remove(&proposal.component_id()),
        }
    }
    updater.changes()
}

fn state(group: &MlsGroup, provider: &Provider) -> Result<State> {
    let context = group.public_group().group_context();
    let members = group
        .members()
        .map(|member| Ok((member.index.u32(), String::from_utf8(member.credential.serialized_content().to_vec())?)));
    Ok(State {
        group_id: context.group_id().to_vec(),
        epoch: context.epoch().as_u64(),
        partition_key: group.export_secret(&provider.crypto, PARTITION_KEY_LABEL, b"", PARTITION_KEY_LENGTH)?,
        tree_hash: context.tree_hash().to_vec(),
        confirmed_transcript_hash: context.confirmed_transcript_hash().to_vec(),
        members: members.collect::<Result<_>>()?,
    })
}
