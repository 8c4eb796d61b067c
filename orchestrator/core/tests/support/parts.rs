//! What tests make clusters and services of.

use orchestrator_core::model::*;
use std::collections::BTreeMap;

/// Secrets that are none.
pub(crate) fn authority() -> (Ca, Tokens) {
    let ca = Ca { certificate: b"certificate".to_vec(), key: Secret(b"key".to_vec()) };
    (ca, Tokens { worker: Secret16([1; 16]), manager: Secret16([2; 16]) })
}

pub(crate) fn default_parts(name: &str) -> ServiceParts {
    ServiceParts {
        name: Name::new(name).unwrap(),
        labels: BTreeMap::new(),
        mode: Mode::Replicated { replicas: 1 },
        task: TaskSpec {
            container: ContainerSpec::new(ImageName::new("nginx").unwrap()),
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            force_update: 0,
        },
        update: UpdateConfig { monitor: Millis(0), ..UpdateConfig::default() },
        rollback: UpdateConfig { monitor: Millis(0), ..UpdateConfig::default() },
        endpoint: EndpointSpec::default(),
        on_disconnect: None,
        disconnect_grace: None,
    }
}
