//! Registration of a peer, bound to the identity in its certificate.

use std::sync::Arc;

use hyper::body::{Body, Incoming};
use mesh_shared::local_api::JoinAnswer;

use super::answer::{self, Answer, read_bytes, refusal};
use super::{WRITE_LIMIT, query};
use crate::membership::admission::{self, MAX_BODY_BYTES};
use crate::state::{Counters, State};
use crate::store::worker::Writer;

/// Judges and enters a join; acknowledged only once a new registration is in the file.
pub(super) async fn answer(
    body: &mut Incoming,
    peer: Option<&str>,
    state: &Arc<State>,
    writer: &Writer,
) -> Answer {
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return refusal(413, "body_too_large", format!("a join has at most {MAX_BODY_BYTES} bytes"));
    }
    let body = match read_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let is_node = |name: &_| state.with(|inner, _| inner.members.members().contains_key(name));
    let entered = admission::admit(&body, peer, is_node).and_then(|(name, node)| {
        state.with(|inner, now| {
            let news = inner.members.hear_itself(&name, node, now)?;
            let listed = inner.members.members().get(&name).is_none_or(|member| member.listed);
            let unwritten = news || (!listed && name != *state.local());
            Ok((name, unwritten))
        })
    });
    let (name, unwritten) = match entered {
        Ok(entered) => entered,
        Err(reason) => {
            Counters::add(&state.counters.joins_refused);
            tracing::warn!(target: "Registry", "join refused: {reason} peer.cn={}", peer.unwrap_or("-"));
            return refusal(reason.status(), reason.code(), reason.to_string());
        }
    };
    Counters::add(&state.counters.joins);
    if unwritten {
        let failure = match tokio::time::timeout(WRITE_LIMIT, writer.write(false)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some("the storage does not answer".into()),
        };
        if let Some(failure) = failure {
            let detail = format!(
                "{name} is known here now, but not registered for good yet: {failure}; join again later"
            );
            return refusal(503, "registry_unavailable", detail);
        }
    }
    answer::json(&JoinAnswer { status: "ok".into(), nodes: query::registry_nodes(state) })
}
