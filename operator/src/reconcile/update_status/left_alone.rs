//! What is said on a resource that another operator looks after: an Event and no more, since the status is the other's.

use super::events;
use super::write::{Remembered, publish};
use crate::context::Context;
use crate::memory::{Memory, ResourceId};
use crate::reconcile::subject::object_reference;

/// Says once that `holder` looks after the resource and this operator does not.
pub(crate) async fn tell_left_alone(
    id: &ResourceId,
    uid: Option<String>,
    holder: &str,
    context: &Context,
    memory: &Memory<Remembered>,
) {
    let told = memory.of(id, |of| of.left_to.replace(holder.to_owned()));
    if told.as_deref() == Some(holder) {
        return;
    }
    let ResourceId { namespace, name } = id;
    tracing::info!(namespace, name, holder, "left to the operator of its namespace");
    publish(&[events::of_left_alone(namespace, holder)], &object_reference(id, uid), context).await;
}
