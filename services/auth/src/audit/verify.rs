//! Verifies the whole trail: every hash, every checkpoint, every published head.

use std::collections::BTreeMap;

use agentbox_bus::Bus;
use agentbox_contracts::audit::AuditHead;
use sea_orm::DatabaseConnection;

use super::chain::{ChainKey, Hash, Link};
use super::store::{self, ChainRow, Checkpoint, Columns};
use crate::store::begin;

/// A change of the trail that no part of AgentBox makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("entry {expected} is missing; entry {found} follows")]
    Missing { expected: u64, found: u64 },
    #[error("entry {0} was changed: its hash is not that of its content and its predecessor")]
    Changed(u64),
    #[error("entry {0} was changed: its columns differ from its content")]
    Columns(u64),
    #[error("checkpoint {0} was not signed with the secret of this deployment")]
    Checkpoint(u64),
    #[error("published head {0} was not signed with the secret of this deployment")]
    Head(u64),
    #[error("the trail was rewritten: entry {0} has another hash than its published head")]
    Rewritten(u64),
    #[error(
        "the end of the trail was cut: it ends with entry {last}, and head {published} was published"
    )]
    Cut { last: u64, published: u64 },
}

/// The state of a verification.
pub struct Verification {
    /// The last verified place.
    verified: Link,
    /// The published hashes after it, by sequence.
    heads: BTreeMap<u64, Hash>,
}

impl Verification {
    /// Begins at the newest checkpoint, or at the first entry if there is none.
    ///
    /// # Errors
    /// A checkpoint or a head with a wrong signature; two that contradict each other.
    pub fn new(
        key: &ChainKey,
        checkpoints: &[Checkpoint],
        published: &[AuditHead],
    ) -> Result<Self, Fault> {
        let mut known = BTreeMap::new();
        for Checkpoint { link, signature } in checkpoints {
            if !key.has_signed(link, signature) {
                return Err(Fault::Checkpoint(link.sequence));
            }
            known.insert(link.sequence, link.hash);
        }
        for head in published {
            let link = signed_link(key, head).ok_or(Fault::Head(head.sequence))?;
            let earlier = *known.entry(link.sequence).or_insert(link.hash);
            if earlier != link.hash {
                return Err(Fault::Rewritten(link.sequence));
            }
        }
        let verified = checkpoints
            .last()
            .map_or(Link::GENESIS, |checkpoint| checkpoint.link);
        Ok(Self {
            heads: known.split_off(&(verified.sequence + 1)),
            verified,
        })
    }

    /// Verifies the next row.
    ///
    /// # Errors
    /// The row does not follow, or was changed.
    pub fn next(&mut self, row: &ChainRow) -> Result<(), Fault> {
        let next = self.verified.next(&row.entry);
        let sequence = u64::try_from(row.sequence).unwrap_or(0);
        if sequence != next.sequence {
            return Err(Fault::Missing {
                expected: next.sequence,
                found: sequence,
            });
        }
        if row.hash != next.hash {
            return Err(Fault::Changed(sequence));
        }
        if !has_equal_columns(row) {
            return Err(Fault::Columns(sequence));
        }
        if self
            .heads
            .remove(&sequence)
            .is_some_and(|hash| hash != next.hash)
        {
            return Err(Fault::Rewritten(sequence));
        }
        self.verified = next;
        Ok(())
    }

    /// The end of the verified trail.
    ///
    /// # Errors
    /// A head was published that the trail no longer has.
    pub fn end(self) -> Result<Link, Fault> {
        match self.heads.last_key_value() {
            Some((published, _)) => Err(Fault::Cut {
                last: self.verified.sequence,
                published: *published,
            }),
            None => Ok(self.verified),
        }
    }
}

fn signed_link(key: &ChainKey, head: &AuditHead) -> Option<Link> {
    let link = Link {
        sequence: head.sequence,
        hash: hex::decode(&head.hash).ok()?.try_into().ok()?,
    };
    let signature = hex::decode(&head.signature).ok()?;
    key.has_signed(&link, &signature).then_some(link)
}

fn has_equal_columns(row: &ChainRow) -> bool {
    let Ok(entry) = Columns::read(&row.entry) else {
        return false;
    };
    row.id == entry.id.as_str()
        && row.at == entry.at
        && row.action == entry.action
        && row.target == entry.target
        && row.actor.as_deref() == entry.user.as_ref().map(|user| user.as_str())
}

/// Verifies the trail in `database` against the heads on the bus.
///
/// # Errors
/// The first [`Fault`]; or Postgres or NATS cannot be reached.
pub async fn run(
    database: &DatabaseConnection,
    bus: &Bus,
    key: &ChainKey,
) -> Result<(), anyhow::Error> {
    // First, because the trail grows meanwhile.
    let published = bus.audit_heads().await?;
    let transaction = begin(database).await?;
    store::lock_retention(&transaction).await?;
    let checkpoints = store::checkpoints(&transaction).await?;
    let mut verification = Verification::new(key, &checkpoints, &published)?;
    let begun_after = verification.verified.sequence;
    loop {
        let rows = store::rows_after(&transaction, verification.verified.sequence).await?;
        for row in &rows {
            verification.next(row)?;
        }
        if rows.len() < store::BATCH {
            break;
        }
    }
    let end = verification.end()?;
    tracing::info!(
        entries = end.sequence - begun_after,
        checkpoints = checkpoints.len(),
        heads = published.len(),
        sequence = end.sequence,
        hash = hex::encode(end.hash),
        "audit trail verified"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditOutcome, Origin};
    use chrono::Utc;

    use super::*;

    fn key() -> ChainKey {
        ChainKey::derive(&"a".repeat(64).parse().unwrap())
    }

    fn trail(length: u64) -> Vec<ChainRow> {
        let mut link = Link::GENESIS;
        let entries = (0..length).map(|_| {
            let action = AuditAction::Exec;
            AuditEntry::new(Origin::default(), action, None, AuditOutcome::Accepted)
        });
        entries
            .map(|entry| {
                let text = serde_json::to_string(&entry).unwrap();
                link = link.next(&text);
                ChainRow {
                    sequence: i64::try_from(link.sequence).unwrap(),
                    id: entry.id.to_string(),
                    at: entry.at,
                    actor: None,
                    action: entry.action.to_string(),
                    target: None,
                    entry: text,
                    hash: link.hash.to_vec(),
                }
            })
            .collect()
    }

    fn link(row: &ChainRow) -> Link {
        Link {
            sequence: u64::try_from(row.sequence).unwrap(),
            hash: row.hash.clone().try_into().unwrap(),
        }
    }

    fn head(row: &ChainRow) -> AuditHead {
        AuditHead {
            sequence: link(row).sequence,
            hash: hex::encode(&row.hash),
            signature: hex::encode(key().sign(&link(row))),
            at: Utc::now(),
        }
    }

    fn checkpoint(row: &ChainRow) -> Checkpoint {
        Checkpoint {
            link: link(row),
            signature: key().sign(&link(row)).to_vec(),
        }
    }

    fn verify(
        rows: &[ChainRow],
        checkpoints: &[Checkpoint],
        heads: &[AuditHead],
    ) -> Result<u64, Fault> {
        let mut verification = Verification::new(&key(), checkpoints, heads)?;
        for row in rows {
            verification.next(row)?;
        }
        verification.end().map(|end| end.sequence)
    }

    #[test]
    fn untouched_trail_is_valid_also_after_retention() {
        let rows = trail(5);
        let heads = [head(&rows[0]), head(&rows[3])];
        assert_eq!(verify(&rows, &[], &heads), Ok(5));
        let kept = [checkpoint(&rows[1])];
        assert_eq!(verify(&rows[2..], &kept, &heads), Ok(5));
        assert_eq!(verify(&[], &[], &[]), Ok(0));
    }

    #[test]
    fn changed_missing_and_hidden_entries_are_found() {
        let rows = trail(3);
        let mut changed = rows.clone();
        changed[1].entry = changed[1].entry.replace("accepted", "refused");
        assert_eq!(verify(&changed, &[], &[]), Err(Fault::Changed(2)));
        let mut hidden = rows.clone();
        hidden[1].actor = Some("user-0123456789abcdef".to_owned());
        assert_eq!(verify(&hidden, &[], &[]), Err(Fault::Columns(2)));
        let missing = [rows[0].clone(), rows[2].clone()];
        let fault = Fault::Missing {
            expected: 2,
            found: 3,
        };
        assert_eq!(verify(&missing, &[], &[]), Err(fault));
    }

    #[test]
    fn cut_tail_and_rewritten_chain_contradict_the_published_heads() {
        let rows = trail(3);
        let heads = [head(&rows[2])];
        let fault = Fault::Cut {
            last: 2,
            published: 3,
        };
        assert_eq!(verify(&rows[..2], &[], &heads), Err(fault));
        let rewritten = trail(3);
        assert_eq!(verify(&rewritten, &[], &heads), Err(Fault::Rewritten(3)));
    }

    #[test]
    fn unsigned_checkpoints_and_heads_are_refused() {
        let rows = trail(3);
        let mut forged = checkpoint(&rows[1]);
        forged.link.hash[0] ^= 1;
        assert_eq!(
            verify(&rows[2..], &[forged], &[]),
            Err(Fault::Checkpoint(2))
        );
        let mut forged = head(&rows[1]);
        forged.sequence = 3;
        assert_eq!(verify(&rows, &[], &[forged]), Err(Fault::Head(3)));
    }
}
