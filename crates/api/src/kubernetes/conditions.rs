//! Types of the conditions in the status of a resource. Those of its components are
//! [`Component::condition`](super::Component::condition).

/// Requests are served.
pub const READY: &str = "Ready";
/// A change is under way, or fewer pods serve than are wanted.
pub const PROGRESSING: &str = "Progressing";
/// Every child is as the resource asks.
pub const CHILDREN_APPLIED: &str = "ChildrenApplied";
/// Routers may apply what the settings ConfigMap holds.
pub const SETTINGS_VALID: &str = "SettingsValid";
/// The PodMonitors are there. The condition exists only while the resource asks for them.
pub const MONITORING_AVAILABLE: &str = "MonitoringAvailable";
/// For tools that know a resource only by kstatus (Flux, for one): a change is under way. Absent unless it is True.
pub const RECONCILING: &str = "Reconciling";
/// For the same tools: nothing goes on until a person acts. Absent unless it is True.
pub const STALLED: &str = "Stalled";
