//! A pipeline's networks: their names, and where it gets them from.

use std::collections::{BTreeMap, VecDeque};

use ndarray::ArrayD;

use crate::engine::footprint::{Demand, Shapes};
use crate::engine::session::Session;
use crate::error::{Classified, Error, ErrorClass};
use crate::tensor::NamedTensors;

/// The component that adapters change, or that makes a model's first steps where it has two; its graph is `step`.
pub const TRANSFORMER: &str = "transformer";
/// The transformer that makes a model's last steps, where it has two.
pub const TRANSFORMER_2: &str = "transformer_2";
/// The component that turns a prompt into embeddings; its graph is `encode`.
pub const TEXT_ENCODER: &str = "text_encoder";
/// The component that tells the transformer what an image shows; its graph is `encode`.
pub const IMAGE_ENCODER: &str = "image_encoder";
/// The component that turns pixels into latents.
pub const VAE_ENCODER: &str = "vae_encoder";
/// The component that turns latents into pixels.
pub const VAE_DECODER: &str = "vae_decoder";
/// The component that predicts adapters.
pub const HYPERNETWORK: &str = "hypernetwork";
/// The component that turns a prompt into embeddings for the predictor, where that has an encoder of its own; its graphs
/// are `encode` and `encode_masked`.
pub const PREDICTOR_TEXT_ENCODER: &str = "predictor_text_encoder";

/// The graph of a step that takes controls.
pub const STEP_CONTROL: &str = "step_control";
/// The input of [`STEP_CONTROL`] with a number for each control, `[B, K]`.
pub const CONTROL: &str = "control";
/// The input of [`STEP_CONTROL`] that says which controls are on, `[B, K]`: 0 is off.
pub const CONTROL_MASK: &str = "control_mask";

/// True if adapters change the component `name`, whose graph is `step`.
pub fn is_transformer(name: &str) -> bool {
    name == TRANSFORMER || name == TRANSFORMER_2
}

/// The networks of a pipeline, by component and graph name (`("transformer", "step")`).
pub trait Components {
    /// The session of one graph; it is opened if need be.
    ///
    /// # Errors
    /// [`ComponentError`] if there is no such graph, or it cannot be opened.
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError>;

    /// The session that predicts for the negative prompt alone: over weights of its own, where adapters are fused for that, and otherwise
    /// over the same weights.
    ///
    /// # Errors
    /// As [`Self::session`]; also where there is one set of weights and one session alone.
    fn negative_session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        Err(ComponentError::OneSession { component: component.to_owned(), graph: graph.to_owned() })
    }

    /// What a graph will take if it is opened and run on inputs of these shapes. `how` are the runs that share what precomputed graphs keep,
    /// whether adapters will be fused into every layer that has a slot, and whether weights are then held as stored instead of as
    /// they would be. `None` if nobody knows.
    ///
    /// # Errors
    /// [`ComponentError`] if the component is there but not intact.
    fn needs(
        &mut self,
        _component: &str,
        _graph: &str,
        _shapes: &Shapes,
        _how: (usize, bool, bool),
    ) -> Result<Option<Needs>, ComponentError> {
        Ok(None)
    }

    /// Bytes that are taken already, of what [`Self::needs`] counts: networks that are open.
    fn held(&self) -> u64 {
        0
    }

    /// Says that a component will be needed soon, so that its files can be read meanwhile.
    fn announce(&mut self, _component: &str) {}

    /// Where the embeddings of texts are kept from one request to the next; `None` if they are not.
    fn kept_texts(&mut self) -> Option<&mut KeptTexts> {
        None
    }

    /// Says that a component is not needed for now. Its memory may be given back; a later [`Self::session`] opens it again.
    fn release(&mut self, component: &str);
}

/// Embeddings of the last few texts, `[texts, tokens, width]` for texts that were encoded together.
#[derive(Default)]
pub struct KeptTexts(VecDeque<(Vec<String>, ArrayD<f32>)>);

/// Requests whose texts are kept. One of UMT5-XXL with its negative prompt takes 16 MB.
const MOST_TEXTS: usize = 4;

impl KeptTexts {
    /// The embeddings of these texts, if they are kept. They are then those that were last used.
    pub(crate) fn find(&mut self, texts: &[String]) -> Option<ArrayD<f32>> {
        let at = self.0.iter().position(|(kept, _)| kept == texts)?;
        let entry = self.0.remove(at)?;
        self.0.push_back(entry);
        self.0.back().map(|(_, embeddings)| embeddings.clone())
    }

    /// Keeps the embeddings of these texts; those that were not used for longest go.
    pub(crate) fn keep(&mut self, texts: Vec<String>, embeddings: ArrayD<f32>) {
        if self.0.len() >= MOST_TEXTS {
            self.0.pop_front();
        }
        self.0.push_back((texts, embeddings));
    }
}

/// The transformer graph of a step, with inputs that it takes besides the usual ones (an adapter's factors, say).
#[derive(Clone, Debug, PartialEq)]
pub struct StepGraph {
    /// Its name.
    pub graph: String,
    /// Its further inputs.
    pub inputs: NamedTensors,
    /// Further inputs of the same graph of the model's second transformer.
    pub second: NamedTensors,
    /// How the negative prompt is predicted for, where it sees other adapters.
    pub negative: Option<Box<NegativeStep>>,
}

/// The step for the negative prompt, where adapters have another strength there. It is the same graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NegativeStep {
    /// Its further inputs.
    pub inputs: NamedTensors,
    /// Its further inputs for the model's second transformer.
    pub second: NamedTensors,
    /// True if it has weights of its own, into which other adapters are fused.
    pub own_weights: bool,
}

impl Default for StepGraph {
    fn default() -> Self {
        Self { graph: "step".to_owned(), inputs: NamedTensors::new(), second: NamedTensors::new(), negative: None }
    }
}

impl StepGraph {
    /// The further inputs of a transformer.
    pub fn inputs_of(&self, component: &str) -> &NamedTensors {
        if component == TRANSFORMER_2 { &self.second } else { &self.inputs }
    }

    /// The further inputs of a transformer for the negative prompt alone.
    pub fn negative_inputs_of(&self, component: &str) -> &NamedTensors {
        match &self.negative {
            Some(negative) if component == TRANSFORMER_2 => &negative.second,
            Some(negative) => &negative.inputs,
            None => self.inputs_of(component),
        }
    }
}

/// What a graph takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// Bytes of private copies of its component's weights: f32, fused and packed.
    pub weights: u64,
    /// Those of them that are fused, which are there before the graph is opened.
    pub fused: u64,
    /// What its runs take.
    pub run: Demand,
}

/// Why a network is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComponentError {
    /// The pipeline has no such graph.
    #[error("the pipeline has no graph `{graph}` in component `{component}`; it has: {available}")]
    Missing {
        /// The component asked for.
        component: String,
        /// The graph asked for.
        graph: String,
        /// What there is.
        available: String,
    },
    /// Prompt and negative prompt would need a session each.
    #[error(
        "`{component}`, graph `{graph}`: one session is open for both prompts, and adapters of other strength for the negative \
         prompt need a second one; open the model as an engine directory"
    )]
    OneSession {
        /// The component.
        component: String,
        /// The graph.
        graph: String,
    },
    /// It is there but cannot be opened.
    #[error("opening `{component}`, graph `{graph}`: {source}")]
    Open {
        /// The component.
        component: String,
        /// The graph.
        graph: String,
        /// The reason.
        source: Error,
    },
}

impl Classified for ComponentError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Missing { .. } => ErrorClass::BadModel,
            Self::OneSession { .. } => ErrorClass::Unsupported,
            Self::Open { source, .. } => source.class(),
        }
    }
}

/// Sessions that are already open, by component and graph name; [`Components::release`] keeps them.
#[derive(Default)]
pub struct OpenSessions {
    sessions: BTreeMap<(String, String), Box<dyn Session>>,
}

impl OpenSessions {
    /// Adds a session, replacing one of the same name.
    pub fn insert(&mut self, component: &str, graph: &str, session: Box<dyn Session>) {
        self.sessions.insert((component.to_owned(), graph.to_owned()), session);
    }
}

impl Components for OpenSessions {
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        let names: Vec<String> = self.sessions.keys().map(|(c, g)| format!("{c}/{g}")).collect();
        let key = (component.to_owned(), graph.to_owned());
        match self.sessions.get_mut(&key) {
            Some(session) => Ok(session.as_mut()),
            None => Err(ComponentError::Missing {
                component: key.0,
                graph: key.1,
                available: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
            }),
        }
    }

    fn release(&mut self, _: &str) {}
}
